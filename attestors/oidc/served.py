"""The OIDC workload attestor as SPIRE's WorkloadAttestor plugin, for agents of others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from attestors import processes
from attestors.oidc.attestor import NAME, OidcAttestor, load
from attestors.oidc.configuration import Configuration
from generated.spire.plugin.agent.workloadattestor.v1 import workloadattestor_pb2 as api
from generated.spire.service.common.config.v1 import config_pb2
from operations import config, hcl, logs
from operations.errors import ConfigurationError, ConfigurationErrors, NotFound
from plugins.context import PluginContext
from plugins.served.plugin import Service
from transport.peer import Peer
from transport.router import Context
from transport.status import Code, RpcError

_ATTESTOR: Final = api.DESCRIPTOR.services_by_name["WorkloadAttestor"]
_CONFIG: Final = config_pb2.DESCRIPTOR.services_by_name["Config"]


class OidcPlugin:
    """A `plugins.served.plugin.Plugin`."""

    def __init__(self) -> None:
        self._attestor: OidcAttestor | None = None
        self._changing = asyncio.Lock()

    def services(self) -> Sequence[Service]:
        return (
            (_ATTESTOR, {"Attest": self.attest}),
            (_CONFIG, {"Configure": self.configure, "Validate": self.validate}),
        )

    def introduce(self, host_services: Sequence[str]) -> Sequence[str]:
        del host_services  # none is needed
        return [_ATTESTOR.full_name, _CONFIG.full_name]

    async def close(self) -> None:
        former, self._attestor = self._attestor, None
        if former is not None:
            await former.close()

    async def configure(
        self, request: config_pb2.ConfigureRequest, _peer: Peer, _context: Context
    ) -> config_pb2.ConfigureResponse:
        """The first time, or anew. What cannot be used leaves what was in force."""
        context = PluginContext(request.core_configuration.trust_domain, None, logs.get(NAME))
        async with self._changing:
            try:
                attestor = await load(_read(request.hcl_configuration), context)
            except ConfigurationErrors as error:  # a status has one line
                raise ConfigurationError("; ".join(map(str, error.problems))) from error
            await self.close()
            self._attestor = attestor
        return config_pb2.ConfigureResponse()

    async def validate(
        self, request: config_pb2.ValidateRequest, _peer: Peer, _context: Context
    ) -> config_pb2.ValidateResponse:
        try:
            settings = _read(request.hcl_configuration)
            await asyncio.to_thread(settings.check_files)
        except ConfigurationErrors as error:
            return config_pb2.ValidateResponse(valid=False, notes=[str(problem) for problem in error.problems])
        except ConfigurationError as error:
            return config_pb2.ValidateResponse(valid=False, notes=[str(error)])
        return config_pb2.ValidateResponse(valid=True)

    async def attest(self, request: api.AttestRequest, _peer: Peer, _context: Context) -> api.AttestResponse:
        """A process that has gone has no selectors. Raises RpcError before there is a configuration."""
        if self._attestor is None:
            raise RpcError(Code.FAILED_PRECONDITION, "not configured")
        try:
            with processes.pinned(request.pid) as process:
                found = await self._attestor.attest(process)
        except NotFound:
            return api.AttestResponse()
        return api.AttestResponse(selector_values=[each.value for each in found])


def _read(data: str) -> Configuration:
    return config.bind(Configuration, hcl.parse(data, "plugin_data"), section=NAME)
