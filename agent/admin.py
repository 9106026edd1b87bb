"""The agent's admin socket, for its operators and for delegates: apart from the one that workloads reach."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Final

from agent import metrics
from agent.caller_limits import MOST_STREAMS
from agent.debug_api import DebugService
from agent.delegated_identity import DelegatedIdentity
from agent.keys_api import KeysService
from agent.logger_api import LoggerService
from agent.manager import Manager
from agent.workload_attestation import WorkloadAttestation
from operations import logs
from transport.limits import SERVER_LIMITS
from transport.router import Router
from transport.server import Server

SOCKET_MODE = 0o770

LIMITS: Final = replace(SERVER_LIMITS, streams=MOST_STREAMS + 64)
"""A delegate has a stream for each workload, on one connection: one who has too many is told so and does not wait."""

_log = logs.get("endpoints")


async def serve_admin(
    path: str,
    manager: Manager,
    attestation: WorkloadAttestation,
    delegates: Collection[str] = (),
    *,
    key_manager: str = "",
) -> Server:
    """Listen at the path, whose folder exists. `delegates` are the SPIFFE IDs that may ask for others' identities.

    `key_manager` is the name of the plugin that has the agent's keys.

    Errors as of transport.unix.bind.
    """
    router = Router()
    router.before, router.after = metrics.hooks()
    DebugService(manager).add_to(router)
    LoggerService().add_to(router)
    KeysService(manager, key_manager).add_to(router)
    DelegatedIdentity(delegates, attestation, manager.cache, manager.jwt_svids).add_to(router)
    server = Server(router, limits=LIMITS)
    await server.listen_unix(path, mode=SOCKET_MODE)
    _log.info("Starting Admin APIs", network="unix", address=path)
    return server
