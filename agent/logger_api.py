"""spire.api.agent.logger.v1.Logger on the admin socket: the log's level, looked at and changed while running."""

from __future__ import annotations

from generated.spire.api.agent.logger.v1 import logger_pb2
from generated.spire.api.types import logger_pb2 as types
from operations import logger_api, logs
from transport.peer import Peer
from transport.router import Context, Router

_log = logs.get("logger_api")


class LoggerService:
    def add_to(self, router: Router) -> None:
        service = logger_pb2.DESCRIPTOR.services_by_name["Logger"]
        router.add(service, {"GetLogger": self.get, "SetLogLevel": self.set, "ResetLogLevel": self.reset})

    async def get(self, _request: logger_pb2.GetLoggerRequest, _peer: Peer, _context: Context) -> types.Logger:
        _log.info("GetLogger Called")
        return logger_api.state()

    async def set(self, request: logger_pb2.SetLogLevelRequest, _peer: Peer, _context: Context) -> types.Logger:
        """Raises InvalidArgument for a level that does not exist."""
        level = logger_api.name_of(request.new_level)
        _log.info("SetLogLevel Called", new_log_level=level)
        logs.set_level(level)
        return logger_api.state()

    async def reset(self, _request: logger_pb2.ResetLogLevelRequest, _peer: Peer, _context: Context) -> types.Logger:
        _log.info("ResetLogLevel Called", launch_log_level=logs.launch_level())
        logs.reset_level()
        return logger_api.state()
