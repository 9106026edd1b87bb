"""Whether the server gives what it should, so that workloads are served what is there instead of waiting for more."""

from __future__ import annotations

from collections.abc import Callable

from operations import logs

_log = logs.get("manager")


class Outage:
    """It begins when one kind of call fails, and is over when each kind goes through again."""

    def __init__(self, changed: Callable[[bool], None] = lambda _: None) -> None:
        """`changed` is told whether there is one now, when that changes."""
        self._changed = changed
        self._failing: set[str] = set()

    @property
    def now(self) -> bool:
        return bool(self._failing)

    def failed(self, what: str, error: Exception) -> None:
        before = self.now
        self._failing.add(what)
        if not before:
            _log.warning("The server does not answer as it should; workloads are served what is in force", error=error)
            self._changed(True)

    def over(self, what: str) -> None:
        before = self.now
        self._failing.discard(what)
        if before and not self.now:
            _log.info("The server answers again")
            self._changed(False)
