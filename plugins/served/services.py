"""go-plugin's own services around a plugin's, and SPIRE's that introduces the two sides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from google.protobuf import empty_pb2

from generated.grpc.health.v1 import health_pb2
from generated.plugin import grpc_broker_pb2, grpc_controller_pb2, grpc_stdio_pb2
from generated.spire.service.private.init.v1 import init_pb2
from operations import logs
from plugins.served.plugin import Plugin, Service
from transport.peer import Peer
from transport.router import Context
from transport.status import Code, RpcError

_SERVING: Final = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
_HEALTHY: Final = frozenset({"", "plugin"})


def around(plugin: Plugin, shut_down: Callable[[], None]) -> Sequence[Service]:
    """What every plugin serves besides its own services."""
    life, introduction = _Life(shut_down), _Introduction(plugin)
    return (
        (
            health_pb2.DESCRIPTOR.services_by_name["Health"],
            {"Check": life.check, "List": life.list, "Watch": life.watch},
        ),
        (grpc_broker_pb2.DESCRIPTOR.services_by_name["GRPCBroker"], {"StartStream": life.broker}),
        (grpc_controller_pb2.DESCRIPTOR.services_by_name["GRPCController"], {"Shutdown": life.shutdown}),
        (grpc_stdio_pb2.DESCRIPTOR.services_by_name["GRPCStdio"], {"StreamStdio": life.output}),
        (
            init_pb2.DESCRIPTOR.services_by_name["Init"],
            {"Init": introduction.init, "Deinit": introduction.deinit},
        ),
    )


class _Introduction:
    def __init__(self, plugin: Plugin) -> None:
        self._plugin = plugin

    async def init(self, request: init_pb2.InitRequest, _peer: Peer, _context: Context) -> init_pb2.InitResponse:
        return init_pb2.InitResponse(plugin_service_names=self._plugin.introduce(tuple(request.host_service_names)))

    async def deinit(self, _request: init_pb2.DeinitRequest, _peer: Peer, _context: Context) -> init_pb2.DeinitResponse:
        await self._plugin.close()
        return init_pb2.DeinitResponse()


class _Life:
    def __init__(self, shut_down: Callable[[], None]) -> None:
        self._shut_down = shut_down

    async def shutdown(
        self, _request: grpc_controller_pb2.Empty, _peer: Peer, _context: Context
    ) -> grpc_controller_pb2.Empty:
        logs.get().debug("The host asks for the end")
        self._shut_down()
        return grpc_controller_pb2.Empty()

    async def broker(
        self, requests: AsyncIterator[grpc_broker_pb2.ConnInfo], _peer: Peer, _context: Context
    ) -> AsyncIterator[grpc_broker_pb2.ConnInfo]:
        """The host tells where its own services are. A key store has no use for them."""
        async for _ in requests:
            pass
        for nothing in tuple[grpc_broker_pb2.ConnInfo, ...]():
            yield nothing

    async def output(
        self, _request: empty_pb2.Empty, _peer: Peer, _context: Context
    ) -> AsyncIterator[grpc_stdio_pb2.StdioData]:
        """Nothing, until the end: what would be printed goes to standard error, and so into the host's log."""
        await asyncio.get_running_loop().create_future()
        for nothing in tuple[grpc_stdio_pb2.StdioData, ...]():
            yield nothing

    async def check(
        self, request: health_pb2.HealthCheckRequest, _peer: Peer, _context: Context
    ) -> health_pb2.HealthCheckResponse:
        if request.service not in _HEALTHY:
            raise RpcError(Code.NOT_FOUND, "unknown service")
        return _SERVING

    async def list(
        self, _request: health_pb2.HealthListRequest, _peer: Peer, _context: Context
    ) -> health_pb2.HealthListResponse:
        return health_pb2.HealthListResponse(statuses=dict.fromkeys(_HEALTHY, _SERVING))

    async def watch(
        self, request: health_pb2.HealthCheckRequest, peer: Peer, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        yield await self.check(request, peer, context)
        await asyncio.get_running_loop().create_future()
