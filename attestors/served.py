"""A workload attestor as SPIRE's WorkloadAttestor plugin, for agents of others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

import msgspec

from attestors import processes
from generated.spire.plugin.agent.workloadattestor.v1 import workloadattestor_pb2 as api
from generated.spire.service.common.config.v1 import config_pb2
from operations import logs
from plugins.context import PluginContext
from plugins.served import configuration
from plugins.served.plugin import Service
from plugins.workloadattestor import HoldsConnections, WorkloadAttestor
from transport.peer import Peer
from transport.router import Context
from transport.status import Code, RpcError

AT_ONCE: Final = 256
"""Calls; a host that makes more waits."""

_SERVICE: Final = api.DESCRIPTOR.services_by_name["WorkloadAttestor"]
_CONFIG: Final = config_pb2.DESCRIPTOR.services_by_name["Config"]

C = TypeVar("C", bound=msgspec.Struct)


@dataclass(slots=True)
class _InForce:
    attestor: WorkloadAttestor
    calls: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)


class WorkloadAttestorPlugin(Generic[C]):
    """A `plugins.served.plugin.Plugin`."""

    def __init__(
        self, name: str, model: type[C], load: Callable[[C, PluginContext], Awaitable[WorkloadAttestor]]
    ) -> None:
        self._name = name
        self._model = model
        self._load = load
        self._in_force: _InForce | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(AT_ONCE)

    def services(self) -> Sequence[Service]:
        return (
            (_SERVICE, {"Attest": self.attest}),
            (_CONFIG, {"Configure": self.configure, "Validate": self.validate}),
        )

    def introduce(self, host_services: Sequence[str]) -> Sequence[str]:
        del host_services
        return [_SERVICE.full_name, _CONFIG.full_name]

    async def close(self) -> None:
        self._replace(None)
        if self._ending:
            await asyncio.wait(self._ending)

    async def configure(
        self, request: config_pb2.ConfigureRequest, _peer: Peer, _context: Context
    ) -> config_pb2.ConfigureResponse:
        """The first time, or anew. What cannot be used leaves what was in force."""
        with configuration.one_line():
            settings = configuration.read(self._model, request.hcl_configuration, self._name)
            context = PluginContext(request.core_configuration.trust_domain, None, logs.get(self._name))
            attestor = await self._load(settings, context)
        self._replace(_InForce(attestor))
        return config_pb2.ConfigureResponse()

    async def validate(
        self, request: config_pb2.ValidateRequest, _peer: Peer, _context: Context
    ) -> config_pb2.ValidateResponse:
        return configuration.validated(lambda: configuration.read(self._model, request.hcl_configuration, self._name))

    async def attest(self, request: api.AttestRequest, _peer: Peer, _context: Context) -> api.AttestResponse:
        """Of the process that has the pid now: it is held from here on, and has to last until the answer."""
        async with self._slots, self._attestor() as attestor:
            with processes.pinned(request.pid) as process:
                selectors = await attestor.attest(process)
        return api.AttestResponse(selector_values=[each.value for each in selectors])

    @asynccontextmanager
    async def _attestor(self) -> AsyncGenerator[WorkloadAttestor]:
        """What is in force, kept for a call. Raises RpcError."""
        in_force = self._in_force
        if in_force is None:
            raise RpcError(Code.FAILED_PRECONDITION, "not configured")
        in_force.calls += 1
        try:
            yield in_force.attestor
        finally:
            in_force.calls -= 1
            if not in_force.calls:
                in_force.idle.set()

    def _replace(self, new: _InForce | None) -> None:
        former, self._in_force = self._in_force, new
        if former is not None:
            task = asyncio.create_task(_end(former))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)


async def _end(former: _InForce) -> None:
    """Let go of what an attestor holds, after the calls that it has."""
    while former.calls:
        former.idle.clear()
        await former.idle.wait()
    if isinstance(former.attestor, HoldsConnections):
        await former.attestor.close()
