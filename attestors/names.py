"""What the system calls users and groups (getpwuid(3), getgrgid(3)), remembered for a moment."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

_LIFE = 10.0
_MOST = 4096


class Names:
    """Directories may be slow to answer."""

    def __init__(self, look_up: Callable[[int], str]) -> None:
        self._look_up = look_up
        self._lock = threading.Lock()
        self._names: dict[int, tuple[float, str]] = {}

    def know(self, numbers: Iterable[int]) -> bool:
        oldest = time.monotonic() - _LIFE
        return all(number in self._names and self._names[number][0] >= oldest for number in numbers)

    def name(self, number: int) -> str:
        """Empty where the system knows none."""
        return self._names[number][1]

    def learn(self, numbers: Iterable[int]) -> None:
        """Blocks. Several threads may do so at once."""
        names = {number: self._ask(number) for number in numbers}
        now = time.monotonic()
        with self._lock:
            if len(self._names) > _MOST:
                self._names = {each: known for each, known in self._names.items() if known[0] >= now - _LIFE}
            self._names.update((number, (now, name)) for number, name in names.items())

    def _ask(self, number: int) -> str:
        try:
            return self._look_up(number)
        except (KeyError, OSError):
            return ""
