"""What fails again and again is told once: when it begins, when its reason changes, now and then, and at its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from operations import logs
from operations.errors import SpireError

REMINDER = 3600.0
"""Seconds until the same failure is told again."""

_log = logs.get("ca_manager")


@dataclass(frozen=True, slots=True)
class _Failure:
    text: str
    told_at: float
    times: int


class Alerts:
    """Failures by what they are of. `now` gives unix seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._failures: dict[str, _Failure] = {}

    def failed(self, what: str, error: SpireError) -> None:
        """Tell, unless it was told, that it is not possible to do it. It is tried again, as the line says."""
        text, now = str(error), self._now()
        before = self._failures.get(what)
        times = before.times + 1 if before is not None else 1
        if before is not None and before.text == text and abs(now - before.told_at) < REMINDER:
            self._failures[what] = _Failure(text, before.told_at, times)
            return
        _log.error(f"Unable to {what}", error=error, failures=times)
        self._failures[what] = _Failure(text, now, times)

    def works(self, what: str) -> None:
        """Tell that it works again, if it failed before."""
        before = self._failures.pop(what, None)
        if before is not None:
            _log.info(f"Able to {what} again", failures=before.times)
