"""grpc.health.v1.Health on the private socket: SERVING once the trust bundle can be read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from generated.grpc.health.v1 import health_pb2
from server.health import Health
from server.rpc.call import Call
from server.rpc.failures import failure
from transport.peer import Peer
from transport.router import Context, Handler
from transport.status import Code

Status = health_pb2.HealthCheckResponse.ServingStatus


class HealthService:
    DESCRIPTOR = health_pb2.DESCRIPTOR.services_by_name["Health"]

    def __init__(self, health: Health) -> None:
        self._health = health

    def handlers(self) -> dict[str, Handler]:
        return {"Check": self.check, "List": self.list, "Watch": self.watch}

    async def check(
        self, request: health_pb2.HealthCheckRequest, _peer: Peer, context: Context
    ) -> health_pb2.HealthCheckResponse:
        _refuse_service(request.service, Call.of(context))
        return await self._response()

    async def list(
        self, _request: health_pb2.HealthListRequest, _peer: Peer, _context: Context
    ) -> health_pb2.HealthListResponse:
        return health_pb2.HealthListResponse(statuses={"": await self._response()})

    async def watch(
        self, request: health_pb2.HealthCheckRequest, _peer: Peer, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The status now and whenever it changes, until the caller goes."""
        _refuse_service(request.service, Call.of(context))
        async with aclosing(self._health.changes()) as changes:
            async for serving in changes:
                yield _message(serving)

    async def _response(self) -> health_pb2.HealthCheckResponse:
        return _message(await self._health.serving())


def _message(serving: bool) -> health_pb2.HealthCheckResponse:
    return health_pb2.HealthCheckResponse(status=Status.SERVING if serving else Status.NOT_SERVING)


def _refuse_service(service: str, call: Call) -> None:
    if service:
        raise failure(call.log, Code.INVALID_ARGUMENT, "per-service health is not supported")
