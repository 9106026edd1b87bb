"""Workload attestation (spire.plugin.agent.workloadattestor.v1): from a process, or a reference, to selectors."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Final, Protocol, runtime_checkable

from identity.selectors import Selector
from transport.peer import Process

PID_REFERENCE: Final = "type.googleapis.com/spiffe.broker.WorkloadPIDReference"
"""The type of a reference that is a process of this host."""

BROKER_ID: Final[ContextVar[str]] = ContextVar("broker_id")
"""The SPIFFE ID of the broker for whom a reference is attested; unset where a process asks for itself."""


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


@runtime_checkable
class ReferenceAttestor(Protocol):
    """What a workload attestor may be besides: one that knows workloads by other means than a process.

    One that is not is asked for the process of a reference that is a pid, and passed over for all others.
    """

    async def attest_reference(self, type_url: str, value: bytes) -> Sequence[Selector]:
        """Selectors of the workload that a message of the SPIFFE Broker API refers to; `value` is it, serialised.

        Raises Unsupported where the attestor has no part in references, or none of this kind, and is to be passed
        over; InvalidArgument for a reference that cannot be understood, NotFound where there is no such workload,
        Refused for a broker that may not ask for it, and other SpireError classes.
        """
        ...


@runtime_checkable
class Patient(Protocol):
    """An attestor that waits for what is not there yet, a pod's container say, and bounds its callers by itself."""

    @property
    def patience(self) -> float:
        """Seconds that it may take."""
        ...
