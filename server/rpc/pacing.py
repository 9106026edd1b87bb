"""Long lists: asked for page by page, and made piece by piece so that other calls get their turn on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol, TypedDict, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_PIECE = 500


class Paged(Protocol):
    """A request for a list."""

    page_size: int
    page_token: str


class Paging(TypedDict):
    """A page as the datastore is asked for it; size 0 is all there is."""

    page_size: int
    page_token: str


def paging(request: Paged) -> Paging:
    """Which page is asked for. As in SPIRE, a token counts beside a page size only."""
    if request.page_size <= 0:
        return Paging(page_size=0, page_token="")
    return Paging(page_size=request.page_size, page_token=request.page_token)


async def paced(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Apply a quick function to each item."""
    results: list[R] = []
    for start in range(0, len(items), _PIECE):
        if start:
            await asyncio.sleep(0)
        results += [function(item) for item in items[start : start + _PIECE]]
    return results
