"""Threads for what may hang: a disk, a network, a user's own file system."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Hashable
from contextlib import AsyncExitStack, suppress
from typing import TypeVar, cast

from attestors.turns import Turns

T = TypeVar("T")


class Threads:
    """At most `most` at once, and `each` for one caller; the others wait in their order.

    A thread has its place until it ends, though nobody may wait for it any more: who makes threads hang has no more of
    them than these. The end of the process waits for none.
    """

    def __init__(self, name: str, *, most: int, each: int) -> None:
        self._name = name
        self._slots = asyncio.Semaphore(most)
        self._turns = Turns(each)
        self._releasing: set[asyncio.Task[None]] = set()

    async def run(self, caller: Hashable, work: Callable[[], T]) -> T:
        """Returns what `work` returns, and raises what it raises."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._turns.of(caller))
            await stack.enter_async_context(self._slots)
            ended = self._start(work)
            task = asyncio.create_task(_release(stack.pop_all(), ended))
            self._releasing.add(task)
            task.add_done_callback(self._releasing.discard)
        return await asyncio.shield(ended)

    def _start(self, work: Callable[[], T]) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[T] = loop.create_future()

        def settle(result: T | None, error: Exception | None) -> None:
            if ended.cancelled():
                return
            if error is not None:
                ended.set_exception(error)
            else:
                ended.set_result(cast("T", result))

        def run() -> None:
            result: T | None = None
            failure: Exception | None = None
            try:
                result = work()
            except Exception as error:  # noqa: BLE001 - raised again by who waits
                failure = error
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(settle, result, failure)

        threading.Thread(target=run, name=self._name, daemon=True).start()
        return ended


async def _release(places: AsyncExitStack, ended: asyncio.Future[T]) -> None:
    async with places:
        await asyncio.wait([ended])
    if not ended.cancelled():
        ended.exception()  # the caller may have gone without asking for it
