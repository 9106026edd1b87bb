"""When each of the workloads' SVIDs is to be issued, and what of that is under way."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

_SLACK = 500


class DueTimes:
    """Moments by entry id, in Unix seconds; 0 is at once. What is due stays due until it is given another moment.

    What changes while it is under way is due again at once: it may be issued by what it was before.
    """

    def __init__(self) -> None:
        self._moments: dict[str, float] = {}
        self._queue: list[tuple[float, str]] = []  # an item that differs from `_moments` is void
        self._under_way: frozenset[str] = frozenset()
        self._outdated: set[str] = set()  # of what is under way

    def __len__(self) -> int:
        return len(self._moments)

    def __contains__(self, entry_id: str) -> bool:
        return entry_id in self._moments

    def set(self, entry_id: str, moment: float) -> None:
        self._moments[entry_id] = moment
        heapq.heappush(self._queue, (moment, entry_id))
        if len(self._queue) > 2 * len(self._moments) + _SLACK:
            self._queue = [(when, each) for each, when in self._moments.items()]
            heapq.heapify(self._queue)

    def set_next(self, entry_id: str, moment: float) -> None:
        """The moment of the next one, now that one was issued or failed; at once where it has changed meanwhile."""
        self.set(entry_id, 0 if entry_id in self._outdated else moment)

    def drop(self, entry_id: str) -> None:
        self._moments.pop(entry_id, None)

    def next(self) -> float | None:
        """The soonest moment."""
        while self._queue:
            moment, entry_id = self._queue[0]
            if self._moments.get(entry_id) == moment:
                return moment
            heapq.heappop(self._queue)
        return None

    def until(self, now: float) -> list[str]:
        """The entries that are due, the soonest first."""
        due: dict[str, float] = {}
        while (moment := self.next()) is not None and moment <= now:
            due[heapq.heappop(self._queue)[1]] = moment
        for entry_id, moment in due.items():
            heapq.heappush(self._queue, (moment, entry_id))
        return list(due)

    def take(self, entry_ids: Iterable[str]) -> None:
        """These are under way, and nothing else is."""
        self._under_way = frozenset(entry_ids)
        self._outdated.clear()

    def outdate(self, entry_id: str) -> None:
        """It has changed."""
        if entry_id in self._under_way:
            self._outdated.add(entry_id)

    def outdate_all(self) -> None:
        self._outdated.update(self._under_way)
