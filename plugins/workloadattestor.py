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
class Patient(Protocol):
    """An attestor that waits for what is not there yet, a pod's container say, and bounds its callers by itself."""

    @property
    def patience(self) -> float:
        """Seconds that it may take."""
        ...
