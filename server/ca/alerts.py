"""What fails again and again is told once: when it begins, when another kind of error comes, now and then, at its end.

Devices that are away have many words for it, so it is the kind that counts: what somebody can do about it.
"""

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
    kind: type[SpireError]
    told_at: float
    times: int


class Alerts:
    """Failures by what they are of. `now` gives unix seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._failures: dict[str, _Failure] = {}

    def failed(self, what: str, error: SpireError) -> None:
        """Tell, unless it was told, that it is not possible to do it. It is tried again, as the line says."""
        kind, now = _kind(error), self._now()
        before = self._failures.get(what)
        times = before.times + 1 if before is not None else 1
        if before is not None and before.kind is kind and abs(now - before.told_at) < REMINDER:
            self._failures[what] = _Failure(kind, before.told_at, times)
            return
        _log.error(f"Unable to {what}", error=error, failures=times)
        self._failures[what] = _Failure(kind, now, times)

    def works(self, what: str) -> None:
        """Tell that it works again, if it failed before."""
        before = self._failures.pop(what, None)
        if before is not None:
            _log.info(f"Able to {what} again", failures=before.times)


def _kind(error: SpireError) -> type[SpireError]:
    """The class of the error tree that its own class refines."""
    kinds = (each for each in type(error).__mro__ if issubclass(each, SpireError))
    return next(each for each in kinds if each.__module__ == SpireError.__module__)
