"""Two streams as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, TypeVar

A = TypeVar("A")
B = TypeVar("B")


async def either(ending: AsyncIterator[A], endless: AsyncIterator[B]) -> AsyncGenerator[A | B, None]:
    """What comes of either, the second's first where both have something; ends with the first.

    Nothing is taken from either while the last one is in the hands of who iterates.
    """
    first: asyncio.Future[A | None] | None = None
    second: asyncio.Future[B] | None = None
    try:
        while True:
            first = first or asyncio.ensure_future(anext(ending, None))
            second = second or asyncio.ensure_future(anext(endless))
            await asyncio.wait((first, second), return_when=asyncio.FIRST_COMPLETED)
            if second.done():
                update, second = second.result(), None
                yield update
            elif (request := first.result()) is not None:
                first = None
                yield request
                del request
            else:
                return
    finally:
        waiting: list[asyncio.Future[Any]] = [each for each in (first, second) if each is not None]
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
