"""Long lists are made piece by piece, so that other calls get their turn on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_PIECE = 500


async def paced(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Apply a quick function to each item."""
    results: list[R] = []
    for start in range(0, len(items), _PIECE):
        if start:
            await asyncio.sleep(0)
        results += [function(item) for item in items[start : start + _PIECE]]
    return results
