"""spire.api.server.logger.v1.Logger on the private socket: the log's level, looked at and changed while running."""

from __future__ import annotations

from generated.spire.api.server.logger.v1 import logger_pb2
from generated.spire.api.types import logger_pb2 as types
from operations import logger_api, logs
from operations.errors import InvalidArgument
from server.rpc.call import Call
from server.rpc.failures import failure
from transport.peer import Peer
from transport.router import Context, Handler
from transport.status import Code


class LoggerService:
    DESCRIPTOR = logger_pb2.DESCRIPTOR.services_by_name["Logger"]

    def handlers(self) -> dict[str, Handler]:
        return {"GetLogger": self.get, "SetLogLevel": self.set, "ResetLogLevel": self.reset}

    async def get(self, _request: logger_pb2.GetLoggerRequest, _peer: Peer, context: Context) -> types.Logger:
        call = Call.of(context)
        call.log.info("GetLogger Called")
        call.succeeded()
        return logger_api.state()

    async def set(self, request: logger_pb2.SetLogLevelRequest, _peer: Peer, context: Context) -> types.Logger:
        call = Call.of(context)
        call.note(new_log_level=_shown(request.new_level))
        try:
            level = logger_api.name_of(request.new_level)
        except InvalidArgument as error:
            raise failure(call.log, Code.INVALID_ARGUMENT, str(error)) from error
        call.log.info("SetLogLevel Called", new_log_level=level)
        logs.set_level(level)
        call.succeeded()
        return logger_api.state()

    async def reset(self, _request: logger_pb2.ResetLogLevelRequest, _peer: Peer, context: Context) -> types.Logger:
        call = Call.of(context)
        call.log.info("ResetLogLevel Called", launch_log_level=logs.launch_level())
        logs.reset_level()
        call.succeeded()
        return logger_api.state()


def _shown(level: types.LogLevel.ValueType) -> str:
    """The level's name in the API; the number of one that it does not know."""
    return types.LogLevel.Name(level) if level in types.LogLevel.values() else str(level)
