"""The agent's admin socket, for its operators: apart from the one that workloads reach."""

from __future__ import annotations

from agent import metrics
from agent.debug_api import DebugService
from agent.logger_api import LoggerService
from agent.manager import Manager
from operations import logs
from transport.router import Router
from transport.server import Server

SOCKET_MODE = 0o770

_log = logs.get("endpoints")


async def serve_admin(path: str, manager: Manager) -> Server:
    """Listen at the path, whose folder exists. Errors as of transport.unix.bind."""
    router = Router()
    router.before, router.after = metrics.hooks()
    DebugService(manager).add_to(router)
    LoggerService().add_to(router)
    server = Server(router)
    await server.listen_unix(path, mode=SOCKET_MODE)
    _log.info("Starting Admin APIs", network="unix", address=path)
    return server
