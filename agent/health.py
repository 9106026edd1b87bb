"""Healthy is an agent whose Workload API answers: for those who ask by grpc.health.v1 on its socket, or over HTTP."""

from __future__ import annotations

import asyncio

from agent.workload_api import SECURITY_HEADER
from generated.grpc.health.v1 import health_pb2
from generated.spiffe.workload import workload_pb2
from operations import logs
from transport.client import Channel
from transport.peer import Peer
from transport.router import Context, Router
from transport.status import Code, RpcError

_TIMEOUT = 30.0

_log = logs.get("health")


class HealthService:
    """Where the Workload API is switched off, an answer is all there is to ask for."""

    def __init__(self, socket_path: str, *, workload_api: bool = True) -> None:
        self._socket_path = socket_path
        self._workload_api = workload_api
        self._probe: asyncio.Task[bool] | None = None

    def add_to(self, router: Router) -> None:
        router.add(health_pb2.DESCRIPTOR.services_by_name["Health"], {"Check": self.check})

    async def check(
        self, request: health_pb2.HealthCheckRequest, peer: Peer, context: Context
    ) -> health_pb2.HealthCheckResponse:
        del peer, context
        if request.service:
            raise RpcError(Code.INVALID_ARGUMENT, "per-service health is not supported")
        healthy = not self._workload_api or await self._answers()
        states = health_pb2.HealthCheckResponse
        return states(status=states.SERVING if healthy else states.NOT_SERVING)

    async def _answers(self) -> bool:
        """All who ask meanwhile share one look: a thousand of them must not make a thousand connections."""
        if self._probe is None:
            self._probe = asyncio.create_task(workload_api_answers(self._socket_path))
            self._probe.add_done_callback(self._looked)
        return await asyncio.shield(self._probe)

    def _looked(self, _: asyncio.Task[bool]) -> None:
        self._probe = None


async def workload_api_answers(socket_path: str) -> bool:
    """Ask as a workload would.

    To be told that the agent itself has no identity is a good answer, and so is that the API is switched off.
    """
    channel = Channel.unix(socket_path)
    responses = channel.server_stream(
        "/SpiffeWorkloadAPI/FetchX509Bundles",
        workload_pb2.X509BundlesRequest(),
        workload_pb2.X509BundlesResponse,
        timeout=_TIMEOUT,
        metadata={SECURITY_HEADER: "true"},
    )
    try:
        async for _ in responses:
            return True
    except RpcError as error:
        if error.code in (Code.PERMISSION_DENIED, Code.UNIMPLEMENTED):
            return True
        _log.warning("Health check failed", reason="unable to fetch X.509 context from Workload API", error=error)
    finally:
        await channel.close()
    return False
