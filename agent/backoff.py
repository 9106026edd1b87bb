"""How long to wait before the next try."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

_MULTIPLIER = 1.5
_JITTER = 0.1
_RETRY_JITTER = 0.5


def jittered(seconds: float) -> float:
    """Give or take a tenth: for what is done at an interval."""
    return seconds * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - spreads load, guards nothing


class Backoff:
    """Waits after failures: they grow by half each time from `initial` up to `ceiling` seconds, give or take a half.

    That much jitter, since all agents of a server fail together: whatever they did in step, they do not retry in step.
    With `budget`, `next` returns None once the wait would end later than `budget` seconds after the first try.
    """

    def __init__(
        self,
        initial: float,
        *,
        ceiling: float | None = None,
        budget: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._initial = initial
        self._ceiling = 24 * initial if ceiling is None else max(ceiling, initial)
        self._budget = budget
        self._clock = clock
        self._started = clock()
        self._wait = initial

    def next(self) -> float | None:
        """Seconds to wait, or None when the budget is spent."""
        wait = self._wait * random.uniform(1 - _RETRY_JITTER, 1 + _RETRY_JITTER)  # noqa: S311 - as above
        self._wait = min(self._wait * _MULTIPLIER, self._ceiling)
        if self._budget is not None and self._clock() - self._started + wait > self._budget:
            return None
        return wait

    def reset(self) -> None:
        self._started = self._clock()
        self._wait = self._initial


class BatchSize:
    """How many requests to put into one call: halved by a failure, doubled by a success."""

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self.value = largest

    def failed(self) -> None:
        self.value = max(1, self.value // 2)

    def succeeded(self) -> None:
        self.value = min(self._largest, self.value * 2)
