"""Two streams as one: signs that something came, and news."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, TypeVar

T = TypeVar("T")


async def either(ending: AsyncIterator[None], endless: AsyncIterator[T]) -> AsyncGenerator[T | None, None]:
    """What comes of the second, and None for each of the first; the second goes first, the first ends both.

    Nothing is taken from either while the last one is in the hands of who iterates.
    """
    first: asyncio.Future[bool] | None = None
    second: asyncio.Future[T] | None = None
    try:
        while True:
            first = first or asyncio.ensure_future(_comes(ending))
            second = second or asyncio.ensure_future(anext(endless))
            await asyncio.wait((first, second), return_when=asyncio.FIRST_COMPLETED)
            if second.done():
                update, second = second.result(), None
                yield update
            elif first.result():
                first = None
                yield None
            else:
                return
    finally:
        waiting: list[asyncio.Future[Any]] = [each for each in (first, second) if each is not None]
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def _comes(ending: AsyncIterator[None]) -> bool:
    """Whether there is one more."""
    async for _ in ending:
        return True
    return False
