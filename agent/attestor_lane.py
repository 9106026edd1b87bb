"""Asking one workload attestor, such that one that hangs and users who call often hold up nobody else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Final

from attestors.turns import Turns
from identity.selectors import Selector
from operations import metrics
from operations.errors import SpireError, TemporarilyUnavailable
from plugins.workloadattestor import Patient, WorkloadAttestor

PATIENCE: Final = 10.0
"""Seconds that an answer may take, time in the line included."""

BRIEFLY: Final = 2.0
"""Seconds that it may take while the attestor is silent."""

_AT_ONCE: Final = 256
_OF_A_CALLER: Final = 64


Question = Callable[[], Awaitable[Sequence[Selector]]]


class NoAnswer(TemporarilyUnavailable):
    """In time."""


class Lane:
    """One attestor's own line of those who wait for it: another attestor's hold up nobody here.

    Once an answer was waited for in vain, all wait briefly until there is one again; one question at a time is left
    with the attestor for longer, though its caller has gone on. An attestor that is patient bounds all that by itself.
    """

    def __init__(self, attestor: WorkloadAttestor, patience: float = PATIENCE) -> None:
        self.attestor = attestor
        self._patience = patience
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._turns = Turns(_OF_A_CALLER)
        self._silent = False  # since an answer was waited for in vain
        self._left: asyncio.Task[Sequence[Selector]] | None = None

    @property
    def name(self) -> str:
        return self.attestor.name

    async def ask(self, caller: Hashable, question: Question) -> Sequence[Selector]:
        """The attestor's answer to a question of the caller's, who has not all places.

        Raises TemporarilyUnavailable when there is none in time, and what the attestor raises.
        """
        if isinstance(self.attestor, Patient):
            return await self._within(self.attestor.patience, question)
        if not self._silent:
            return await self._in_line(caller, self._patience, question)
        if self._left is not None and not self._left.done():
            return await self._in_line(caller, BRIEFLY, question)
        self._left = left = asyncio.create_task(self._in_line(caller, self._patience, question))
        left.add_done_callback(_look_at)
        return await self._within(BRIEFLY, lambda: asyncio.shield(left))

    async def _in_line(self, caller: Hashable, patience: float, question: Question) -> Sequence[Selector]:
        async def ask_in_turn() -> Sequence[Selector]:
            async with self._turns.of(caller), self._slots:
                return await question()

        begun = time.monotonic()
        try:
            answer = await self._within(patience, ask_in_turn)
        except NoAnswer:
            self._silent = True
            raise
        except asyncio.CancelledError:
            # A caller with less patience than that tells nothing about the attestor.
            self._silent |= time.monotonic() - begun >= BRIEFLY
            raise
        except SpireError:
            self._silent = False
            raise
        self._silent = False
        return answer

    async def _within(self, patience: float, question: Question) -> Sequence[Selector]:
        try:
            async with asyncio.timeout(patience):
                with metrics.call("workload_api", "workload_attestor", attestor=self.name):
                    return await question()
        except TimeoutError as error:
            raise NoAnswer(f"no answer within {patience:g} s") from error


def _look_at(task: asyncio.Task[Sequence[Selector]]) -> None:
    """Its caller, who may have gone on, is the one to tell."""
    if not task.cancelled():
        task.exception()
