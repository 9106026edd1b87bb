"""What every command that asks a running agent shares: which socket, how long to wait, how a failure is told."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from operations.errors import InvalidArgument, SpireError
from operations.flags import Flag, FlagSet, Run
from transport.client import Channel
from transport.status import Code, RpcError

if TYPE_CHECKING:
    from google.protobuf.message import Message

R = TypeVar("R", bound="Message")

DEFAULT_SOCKET = "/tmp/spire-agent/public/api.sock"  # noqa: S108  SPIRE's own default, which scripts rely on
SOCKET = "SPIRE_AGENT_PUBLIC_SOCKET"
TEMPLATE = "SPIRE_AGENT_PUBLIC_SOCKET_TEMPLATE"
TIMEOUT = timedelta(seconds=5)

WORKLOAD_API = "/SpiffeWorkloadAPI"
HEADER: Final[Mapping[str, str]] = {"workload.spiffe.io": "true"}
"""Metadata of every call to the Workload API (SPIFFE Workload Endpoint, section 6.1)."""


@dataclass(frozen=True, slots=True)
class SocketFlags:
    path: Flag[str]
    instance: Flag[str]

    @classmethod
    def declare(cls, flags: FlagSet) -> SocketFlags:
        path = flags.string("socketPath", DEFAULT_SOCKET, "The agent's public socket")
        usage = f"Take the socket path from ${TEMPLATE}, with this name for %i. -socketPath wins"
        return cls(path, flags.string("instance", "", usage))

    def resolve(self) -> str:
        """An absolute path. -socketPath wins over -instance, which wins over the environment.

        Raises InvalidArgument.
        """
        template = os.environ.get(TEMPLATE, "")
        if self.instance.value and not template:
            raise InvalidArgument(
                f"-instance needs {TEMPLATE} in the environment: set it to a socket path with %i in it"
            )
        if self.instance.value and "%i" not in template:
            raise InvalidArgument(f"{TEMPLATE} has no %i for the name that -instance gives")
        chosen = os.environ.get(SOCKET) or DEFAULT_SOCKET
        if self.path.value != DEFAULT_SOCKET:
            chosen = self.path.value
        elif self.instance.value:
            chosen = template.replace("%i", self.instance.value)
        return str(Path(chosen).absolute())


class WorkloadApi:
    """Calls to the Workload API within the time that the command may take. They raise RpcError."""

    def __init__(self, channel: Channel, timeout: timedelta) -> None:
        self._channel = channel
        self._timeout = max(timeout.total_seconds(), 0) or None

    async def unary(self, name: str, request: Message, response: type[R]) -> R:
        path = f"{WORKLOAD_API}/{name}"
        return await self._channel.unary(path, request, response, timeout=self._timeout, metadata=HEADER)

    async def first(self, name: str, request: Message, response: type[R]) -> R:
        """The first message of a stream, which the agent sends at once."""
        path = f"{WORKLOAD_API}/{name}"
        stream = self._channel.server_stream(path, request, response, timeout=self._timeout, metadata=HEADER)
        async with aclosing(stream):
            async for message in stream:
                return message
        raise RpcError(Code.UNAVAILABLE, "the agent ended the stream before its first message")


Act = Callable[[WorkloadApi], Coroutine[None, None, None]]
"""What a command does with the agent. It raises SpireError to fail."""


def calling(flags: FlagSet, act: Act) -> Run:
    """Declare the flags that name the agent's socket and the timeout; the command then runs `act`."""
    timeout = flags.duration("timeout", TIMEOUT, "How long to wait for the agent, e.g. 500ms; 0 means without end")
    socket = SocketFlags.declare(flags)

    async def call() -> None:
        async with Channel.unix(socket.resolve()) as channel:
            await act(WorkloadApi(channel, timeout.value))

    return telling(call)


def telling(call: Callable[[], Coroutine[None, None, None]]) -> Run:
    """A command that runs `call` and tells its failure in one line."""

    def run(_: list[str]) -> int:
        try:
            asyncio.run(call())
        except SpireError as error:
            print(error, file=sys.stderr)
            return 1
        return 0

    return run
