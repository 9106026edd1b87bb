from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Generic, TypeVar

import pytest

from agent.sds.either import either

T = TypeVar("T")


class End:
    """Of a source."""


class Source(Generic[T]):
    """Gives what it is told, until it is told to end; knows whether anybody waits."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[T | Exception | End] = asyncio.Queue()
        self._waiting = False

    def waited_for(self) -> bool:
        return self._waiting

    async def __aiter__(self) -> AsyncIterator[T]:
        while True:
            self._waiting = True
            try:
                item = await self.queue.get()
            finally:
                self._waiting = False
            if isinstance(item, End):
                return
            if isinstance(item, Exception):
                raise item
            yield item


async def test_the_second_comes_first_and_the_first_ends_both() -> None:
    first, second = Source[None](), Source[str]()
    first.queue.put_nowait(None)
    first.queue.put_nowait(End())
    for each in ("update", "another"):
        second.queue.put_nowait(each)
    found = [each async for each in either(aiter(first), aiter(second))]
    assert found == ["update", "another", None]
    assert not first.waited_for()
    assert not second.waited_for()


async def test_an_error_ends_both() -> None:
    first, second = Source[None](), Source[str]()
    first.queue.put_nowait(ValueError("cut off"))
    with pytest.raises(ValueError, match="cut off"):
        _ = [each async for each in either(aiter(first), aiter(second))]
    assert not second.waited_for()


async def test_nothing_is_taken_ahead_and_nobody_waits_on_after_the_end() -> None:
    first, second = Source[None](), Source[str]()
    second.queue.put_nowait("update")
    async with aclosing(either(aiter(first), aiter(second))) as both:
        assert await anext(both) == "update"
        second.queue.put_nowait("newer")
        await asyncio.sleep(0)
        assert second.queue.qsize() == 1
        assert await anext(both) == "newer"
        assert first.waited_for()
    assert not first.waited_for()


async def test_a_reader_that_is_cancelled_leaves_nothing_behind() -> None:
    first, second = Source[None](), Source[str]()

    async def read() -> None:
        async with aclosing(either(aiter(first), aiter(second))) as both:
            async for _ in both:
                pass

    reading = asyncio.ensure_future(read())
    while not (first.waited_for() and second.waited_for()):  # noqa: ASYNC110 - a flag, not an event
        await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert not first.waited_for()
    assert not second.waited_for()
