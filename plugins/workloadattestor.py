"""Workload attestation (spire.plugin.agent.workloadattestor.v1): from a process to selectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from identity.selectors import Selector
from transport.peer import Process


class WorkloadAttestor(Protocol):
    @property
    def name(self) -> str: ...

    async def attest(self, process: Process) -> Sequence[Selector]:
        """Selectors of the process. Raises SpireError classes when the process cannot be examined."""
        ...


@runtime_checkable
class HoldsConnections(Protocol):
    """What a workload attestor may be besides: one that has something to let go of when the agent ends."""

    async def close(self) -> None: ...
