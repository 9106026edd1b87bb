"""One list of pods for all who wait for one: at most one request at a time, and not more often than the interval."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from attestors.k8s.pods import Pods
from operations.errors import TemporarilyUnavailable


@dataclass(frozen=True, slots=True)
class PodList:
    """A higher version is a later list."""

    version: int
    pods: Pods


class PodLists:
    """A list is good for the others too until the next may be asked for."""

    def __init__(self, fetch: Callable[[], Awaitable[Pods]], interval: float) -> None:
        """`interval` is in seconds, from the start of one request to the start of the next."""
        self._fetch = fetch
        self._interval = interval
        self._last: PodList | None = None
        self._version = 0
        self._last_started = self._asked_at = float("-inf")
        self._task: asyncio.Task[PodList] | None = None
        self._closed = False

    async def after(self, version: int) -> PodList:
        """A list later than the one seen. Raises what the request raises, TemporarilyUnavailable when closed."""
        if self._closed:
            raise _closed()
        loop = asyncio.get_running_loop()
        if self._last and version < self._last.version and loop.time() < self._last_started + self._interval:
            return self._last
        task = self._task
        if task is None:
            task = self._task = loop.create_task(self._next())
            task.add_done_callback(self._done)
        # Whoever gives up leaves the request to the others, and its result to those who come next.
        await asyncio.wait((task,))
        if task.cancelled():
            raise _closed()
        return task.result()

    async def close(self) -> None:
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _next(self) -> PodList:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._asked_at + self._interval - loop.time())
        self._asked_at = loop.time()
        started = self._asked_at
        pods = await self._fetch()
        self._version += 1
        self._last, self._last_started = PodList(self._version, pods), started
        return self._last

    def _done(self, task: asyncio.Task[PodList]) -> None:
        self._task = None
        if not task.cancelled():
            task.exception()  # seen, though nobody may be waiting any more


def _closed() -> TemporarilyUnavailable:
    return TemporarilyUnavailable("pod list fetcher is closed")
