"""What is known of images: those that were verified for long, those that were refused for a moment."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from operations.errors import Refused

REFUSED_SECONDS: Final = 5.0
"""A workload that asks again and again costs its registry no more than this; who signs an image waits no longer."""

_MOST_REFUSED = 1024
_MOST_SELECTORS = 100_000


class Remembered:
    """Bounded by what there is to remember; what has not been asked for the longest goes first."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._verified: OrderedDict[str, Sequence[str]] = OrderedDict()
        self._selectors = 0
        self._refused: OrderedDict[str, tuple[float, str]] = OrderedDict()

    def find(self, image: str) -> Sequence[str] | None:
        """Raises Refused for an image that was refused just now."""
        known = self._verified.get(image)
        if known is not None:
            self._verified.move_to_end(image)
            return known
        at, reason = self._refused.get(image, (float("-inf"), ""))
        if self._clock() - at < REFUSED_SECONDS:
            raise Refused(reason)
        return None

    def verified(self, image: str, selectors: Sequence[str]) -> None:
        self._selectors += len(selectors) - len(self._verified.get(image, ()))
        self._verified[image] = selectors
        while self._selectors > _MOST_SELECTORS:
            _, gone = self._verified.popitem(last=False)
            self._selectors -= len(gone)

    def refused(self, image: str, error: Refused) -> None:
        self._refused.pop(image, None)
        self._refused[image] = (self._clock(), str(error))
        if len(self._refused) > _MOST_REFUSED:
            self._refused.popitem(last=False)
