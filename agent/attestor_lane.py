"""Asking one workload attestor, such that one that hangs and users who call often hold up nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Final

from attestors.turns import Turns
from identity.selectors import Selector
from operations import metrics
from operations.errors import TemporarilyUnavailable
from plugins.workloadattestor import Patient, WorkloadAttestor

PATIENCE: Final = 10.0
"""Seconds that an answer may take, time in the line included."""

_AT_ONCE: Final = 256
_OF_A_CALLER: Final = 64


class Lane:
    """One attestor's own line of those who wait for it: another attestor's hold up nobody here.

    One that is patient bounds its callers and the time by itself.
    """

    def __init__(self, attestor: WorkloadAttestor, patience: float = PATIENCE) -> None:
        self.attestor = attestor
        self._patience = patience
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._turns = Turns(_OF_A_CALLER)

    @property
    def name(self) -> str:
        return self.attestor.name

    async def ask(self, caller: Hashable, question: Callable[[], Awaitable[Sequence[Selector]]]) -> Sequence[Selector]:
        """The attestor's answer to a question of the caller's, who has not all places.

        Raises TemporarilyUnavailable when there is none in time, and what the attestor raises.
        """
        attestor = self.attestor
        patience = attestor.patience if isinstance(attestor, Patient) else self._patience
        try:
            async with asyncio.timeout(patience):
                if isinstance(attestor, Patient):
                    return await self._timed(question)
                async with self._turns.of(caller), self._slots:
                    return await self._timed(question)
        except TimeoutError as error:
            raise TemporarilyUnavailable(f"no answer within {patience:g} s") from error

    async def _timed(self, question: Callable[[], Awaitable[Sequence[Selector]]]) -> Sequence[Selector]:
        with metrics.call("workload_api", "workload_attestor", attestor=self.name):
            return await question()
