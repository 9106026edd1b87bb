"""Who has which session: the sockets of one worker process, handed out one call at a time, in order."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress

from keystores.errors import TemporarilyUnavailable
from keystores.pkcs11.lane import Lane, Lost
from keystores.pkcs11.process import WorkerProcess

QUEUE_LIMIT = 1000
"""Calls that may wait for one token."""


class Pool:
    def __init__(self, worker: WorkerProcess) -> None:
        self.worker = worker
        self.broken = False
        self._idle = list(worker.lanes)
        self._size = len(self._idle)
        self._waiting: deque[tuple[bool, asyncio.Future[Lane]]] = deque()
        self._quiet: asyncio.Event | None = None

    @property
    def size(self) -> int:
        return self._size

    @property
    def has_idle(self) -> bool:
        return bool(self._idle)

    def take(self, *, rw: bool = False) -> Lane | None:
        """An idle session, one that only signs first. Raises Lost when the worker has ended."""
        if self.broken:
            raise Lost("the PKCS#11 worker has ended")
        able = [lane for lane in self._idle if lane.rw or not rw]
        if not able:
            return None
        lane = next((lane for lane in able if lane.rw == rw), able[0])
        self._idle.remove(lane)
        return lane

    async def wait(self, patience: float, *, rw: bool = False) -> Lane:
        """The next session that comes free.

        Raises TemporarilyUnavailable when too many wait or none comes in time, Lost when the worker ends.
        """
        if len(self._waiting) >= QUEUE_LIMIT:
            raise TemporarilyUnavailable(f"{QUEUE_LIMIT} calls wait for the token already")
        future: asyncio.Future[Lane] = asyncio.get_running_loop().create_future()
        self._waiting.append((rw, future))
        try:
            async with asyncio.timeout(patience):
                return await future
        except BaseException as error:
            if (rw, future) in self._waiting:
                self._waiting.remove((rw, future))
            elif future.done() and not future.cancelled() and future.exception() is None:
                self.release(future.result())  # it came as its caller gave up
            if isinstance(error, TimeoutError):
                raise TemporarilyUnavailable(f"the token was busy for {patience:.0f} s") from None
            raise

    def release(self, lane: Lane) -> None:
        """Give it to whoever waits longest for one of its kind."""
        for rw, future in self._waiting:
            if not future.done() and (lane.rw or not rw):
                self._waiting.remove((rw, future))
                future.set_result(lane)
                return
        self._idle.append(lane)
        self._look_if_quiet()

    def retire(self, lane: Lane) -> None:
        """Do without a session: the token has none for it."""
        lane.close()
        self._size -= 1
        self._look_if_quiet()

    def _look_if_quiet(self) -> None:
        if self._quiet is not None and len(self._idle) == self._size:
            self._quiet.set()

    async def quiet(self, patience: float) -> None:
        """Returns when no call is under way, or after the patience."""
        self._quiet = asyncio.Event()
        self._look_if_quiet()
        with suppress(TimeoutError):
            async with asyncio.timeout(0 if self.broken else patience):
                await self._quiet.wait()

    def give_up(self, error: Lost) -> None:
        """The worker is no more; those who wait try the next one."""
        self.broken = True
        while self._waiting:
            _, future = self._waiting.popleft()
            if not future.done():
                future.set_exception(error)
