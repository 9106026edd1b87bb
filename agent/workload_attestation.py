"""From the caller of a Unix socket to its selectors, by all workload attestors at once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

from attestors import processes
from attestors.turns import Turns
from identity.selectors import Selector
from operations import logs, metrics
from operations.errors import SpireError, TemporarilyUnavailable
from plugins.workloadattestor import WorkloadAttestor
from transport.peer import Peer, Process

_TIMEOUT = 10.0
_AT_ONCE = 64
_OF_A_USER = 16

_log = logs.get("workload_attestor")


class WorkloadAttestation:
    """One attestor that fails or hangs costs its selectors, not the others'."""

    def __init__(self, attestors: Sequence[WorkloadAttestor], *, timeout: float = _TIMEOUT) -> None:
        """`timeout` is in seconds, for each attestor. Raises ConfigurationError where processes cannot be told."""
        processes.require_own_proc()
        self._attestors = attestors
        self._timeout = timeout
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._turns = Turns(_OF_A_USER)

    @metrics.timed("workload_api", "workload_attestation")
    async def attest(self, peer: Peer) -> frozenset[Selector]:
        """Raises TemporarilyUnavailable when no attestor succeeds, or the caller is not the one that connected."""
        process = peer.process
        if process is None:
            raise TemporarilyUnavailable("workload attestation failed")
        # A user who calls a thousand times at once has not all slots.
        async with self._turns.of(process.uid), self._slots:
            results = await self._ask_all(process)
            self._require_same(process)
        found = [selectors for selectors in results if selectors is not None]
        if self._attestors and not found:
            raise TemporarilyUnavailable("workload attestation failed")
        selectors = frozenset(selector for some in found for selector in some)
        metrics.sample("workload_api", "discovered_selectors", value=len(selectors))
        if process.pid != os.getpid() and _log.enabled("debug"):
            _log.debug("PID attested to have selectors", pid=process.pid, selectors=sorted(map(str, selectors)))
        return selectors

    async def _ask_all(self, process: Process) -> Sequence[Sequence[Selector] | None]:
        if len(self._attestors) == 1:
            return [await self._ask(self._attestors[0], process)]
        return await asyncio.gather(*(self._ask(each, process) for each in self._attestors))

    async def _ask(self, attestor: WorkloadAttestor, process: Process) -> Sequence[Selector] | None:
        try:
            async with asyncio.timeout(self._timeout):
                with metrics.call("workload_api", "workload_attestor", attestor=attestor.name):
                    return await attestor.attest(process)
        except TimeoutError:
            error: Exception = TemporarilyUnavailable(f"no answer within {self._timeout:g} s")
        except SpireError as refusal:
            error = refusal
        _log.error("workload attestor failed", attestor=attestor.name, pid=process.pid, error=error)
        return None

    def _require_same(self, process: Process) -> None:
        try:
            processes.require_same(process)
        except SpireError as error:
            _log.error("Workload attestation failed", pid=process.pid, error=error)
            raise TemporarilyUnavailable("workload attestation failed") from error
