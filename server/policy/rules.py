"""What the policy says of a call, in the roles of the built-in table.

The query is `data.spire.result`, an object of five booleans. Of the caller the policy is told the SPIFFE ID, or on the
Unix socket the path of the program; of the call the method, and the request where that is one message that one message
answers.
"""

from __future__ import annotations

import asyncio
import os
from typing import Final

import msgspec
from google.protobuf.message import Message

from operations.errors import ConfigurationError, SpireError
from server.authorization import Role
from server.policy.engine import PATIENCE, Engine, Patience, PolicyFailed
from server.policy.files import PolicyFiles, read
from server.policy.go_json import to_json
from transport.peer import Peer, Process

FIELDS: Final = {
    "allow": Role.ANY,
    "allow_if_local": Role.LOCAL,
    "allow_if_admin": Role.ADMIN,
    "allow_if_downstream": Role.DOWNSTREAM,
    "allow_if_agent": Role.AGENT,
}

STRANGERS_LIMIT: Final = 64 << 10
"""Bytes of a request that a caller without a name may have judged. It costs nothing to send them."""


class Input(msgspec.Struct, frozen=True):
    caller: str
    caller_file_path: str
    full_method: str
    req: object


_ID: Final = {"trust_domain": "example.org", "path": "/workload"}
_SELECTOR: Final = {"type": "unix", "value": "uid:1000"}
_ENTRY: Final = {"id": "entry", "spiffe_id": _ID, "parent_id": {**_ID, "path": "/host"}, "selectors": [_SELECTOR]}
_API: Final = "/spire.api.server."

SAMPLES: Final = (
    Input("", "", _API + "bundle.v1.Bundle/GetBundle", {}),
    Input("", "", "/grpc.health.v1.Health/Check", {}),
    Input("", "", _API + "agent.v1.Agent/AttestAgent", None),
    Input("", "", _API + "agent.v1.Agent/CreateJoinToken", {"ttl": 600, "agent_id": _ID}),
    *(
        Input(caller, "", _API + f"entry.v1.Entry/{name}", request)
        for caller in ("", "spiffe://example.org/workload")
        for name, request in (("BatchCreateEntry", {"entries": [_ENTRY]}), ("ListEntries", {"filter": {}}))
    ),
)
"""Calls that a policy has to have a result for before a server starts with it."""


class RegoPolicy:
    """A policy that has been compiled and tried."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @classmethod
    async def load(cls, files: PolicyFiles, patience: Patience = PATIENCE) -> RegoPolicy:
        """Raises ConfigurationError, whose one line has the path and, where the engine tells it, the line."""
        engine = await Engine.start(await asyncio.to_thread(read, files), patience)
        policy = cls(engine)
        try:
            for sample in SAMPLES:
                await policy._roles(sample)
        except ConfigurationError:
            await engine.close()
            raise
        except SpireError as error:
            await engine.close()
            raise ConfigurationError(f"a try with {sample.full_method} failed: {error}", file=files.rego) from error
        return policy

    @classmethod
    async def check(cls, files: PolicyFiles) -> None:
        """As `load`, for nothing but its errors."""
        await (await cls.load(files)).close()

    @property
    def pid(self) -> int | None:
        return self._engine.pid

    async def roles(self, path: str, peer: Peer, caller: str, request: Message | None) -> Role:
        """Who may make the call. Raises SpireError when the policy gives no answer."""
        if not caller and peer.process is None and request is not None and request.ByteSize() > STRANGERS_LIMIT:
            return Role(0)
        program = await asyncio.to_thread(_program, peer.process) if peer.process is not None else ""
        return await self._roles(Input(caller, program, path, None if request is None else to_json(request)))

    async def _roles(self, document: Input) -> Role:
        return roles_of(await self._engine.evaluate(msgspec.json.encode(document)))

    async def close(self) -> None:
        await self._engine.close()


def roles_of(result: object) -> Role:
    """Raises PolicyFailed for anything but an object with the five booleans."""
    if result is None:
        raise PolicyFailed("data.spire.result is undefined: does the policy begin with `package spire`?")
    if not isinstance(result, dict):
        raise PolicyFailed("data.spire.result is no object")
    roles = Role(0)
    for name, role in FIELDS.items():
        value = result.get(name)
        if not isinstance(value, bool):
            raise PolicyFailed(f"data.spire.result has no {name} that is true or false")
        if value:
            roles |= role
    return roles


def _program(process: Process) -> str:
    """The path of the program that a local caller runs; empty where the kernel does not tell or the caller has ended."""
    try:
        path = os.readlink(f"/proc/{process.pid}/exe")
    except OSError:
        return ""
    if process.pidfd is not None and process.pidfd.ended:
        return ""  # the pid may have been another's
    return path if path.isprintable() else ""
