"""WorkloadAttestor plugins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from google.protobuf.any_pb2 import Any

from generated.spiffe.broker.api_pb2 import WorkloadPIDReference
from generated.spire.plugin.agent.workloadattestor.v1 import workloadattestor_pb2 as api
from identity.selectors import Selector
from plugins.external.plugin import Plugin
from plugins.workloadattestor import BROKER_ID, PID_REFERENCE
from transport.peer import Process
from transport.status import Code, RpcError

TIMEOUT: Final = 30.0
"""Seconds; the agent's own limit for an attestor comes first."""

MOST_SELECTORS: Final = 10_000

_BROKER_ID: Final = "spire-agent-broker-caller-id"


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
        except RpcError as error:
            if error.code is not Code.UNIMPLEMENTED:
                raise
            return await self.attest_reference(PID_REFERENCE, WorkloadPIDReference(pid=process.pid).SerializeToString())
        return self._selectors(response.selector_values)

    async def attest_reference(self, type_url: str, value: bytes) -> Sequence[Selector]:
        """As plugins.workloadattestor.ReferenceAttestor has it, with the broker's name for the plugin to judge."""
        broker = BROKER_ID.get(None)
        response = await self._plugin.call(
            f"/{self.SERVICE}/AttestReference",
            api.AttestReferenceRequest(reference=Any(type_url=type_url, value=value)),
            api.AttestReferenceResponse,
            timeout=TIMEOUT,
            metadata={} if broker is None else {_BROKER_ID: broker},
        )
        return self._selectors(response.selector_values)

    def _selectors(self, values: Sequence[str]) -> Sequence[Selector]:
        if len(values) > MOST_SELECTORS:
            reason = f"the plugin gave {len(values)} selectors, of which a workload may have {MOST_SELECTORS}"
            raise self._plugin.error(Code.RESOURCE_EXHAUSTED, reason)
        return [Selector(self.name, value) for value in values]
