"""WorkloadAttestor plugins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from google.protobuf.any_pb2 import Any

from generated.spire.plugin.agent.workloadattestor.v1 import workloadattestor_pb2 as api
from identity.selectors import Selector
from plugins.external.plugin import Plugin
from transport.peer import Process
from transport.status import Code, RpcError

TIMEOUT: Final = 30.0
"""Seconds; the agent's own limit for an attestor comes first."""

_PID_REFERENCE: Final = "type.googleapis.com/spiffe.broker.WorkloadPIDReference"


class ExternalWorkloadAttestor:
    """A plugin that knows references only is asked with the pid as a reference."""

    SERVICE: Final = "spire.plugin.agent.workloadattestor.v1.WorkloadAttestor"

    def __init__(self, plugin: Plugin) -> None:
        self._plugin = plugin

    @property
    def name(self) -> str:
        return self._plugin.name

    async def attest(self, process: Process) -> Sequence[Selector]:
        """The selectors' type is the plugin's name, whatever the plugin says. Raises RpcError."""
        request = api.AttestRequest(pid=process.pid)
        try:
            response = await self._plugin.call(f"/{self.SERVICE}/Attest", request, api.AttestResponse, timeout=TIMEOUT)
            values: Sequence[str] = response.selector_values
        except RpcError as error:
            if error.code is not Code.UNIMPLEMENTED:
                raise
            values = await self._by_reference(request)
        return [Selector(self.name, value) for value in values]

    async def _by_reference(self, request: api.AttestRequest) -> Sequence[str]:
        # WorkloadPIDReference is an AttestRequest on the wire: field 1, int32, the pid.
        reference = Any(type_url=_PID_REFERENCE, value=request.SerializeToString())
        response = await self._plugin.call(
            f"/{self.SERVICE}/AttestReference",
            api.AttestReferenceRequest(reference=reference),
            api.AttestReferenceResponse,
            timeout=TIMEOUT,
        )
        return response.selector_values
