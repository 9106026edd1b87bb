"""Who has which session: the sockets of one worker process, handed out one call at a time, in order."""

from __future__ import annotations

import asyncio
from collections import deque

from keystores.errors import TemporarilyUnavailable
from keystores.pkcs11.process import Lane, Lost, WorkerProcess

QUEUE_LIMIT = 1000
"""Calls that may wait for one token."""


class Pool:
    def __init__(self, worker: WorkerProcess) -> None:
        self.worker = worker
        self.broken = False
        self._idle = list(worker.lanes)
        self._size = len(self._idle)
        self._waiting: deque[tuple[bool, asyncio.Future[Lane]]] = deque()

    @property
    def size(self) -> int:
        return self._size

    @property
    def has_idle(self) -> bool:
        return bool(self._idle)

    async def acquire(self, patience: float, *, rw: bool = False) -> Lane:
        """Raises TemporarilyUnavailable when too many wait or none comes free in time, Lost when the worker ends."""
        if self.broken:
            raise Lost("the PKCS#11 worker has ended")
        lane = self._taken(rw=rw)
        if lane is not None:
            return lane
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

    def _taken(self, *, rw: bool) -> Lane | None:
        """An idle session, one that only signs first."""
        for lane in sorted(self._idle, key=lambda lane: lane.rw):
            if lane.rw or not rw:
                self._idle.remove(lane)
                return lane
        return None

    def release(self, lane: Lane) -> None:
        """Give it to whoever waits longest for one of its kind."""
        for rw, future in list(self._waiting):
            if not future.done() and (lane.rw or not rw):
                self._waiting.remove((rw, future))
                future.set_result(lane)
                return
        self._idle.append(lane)

    def retire(self, lane: Lane) -> bool:
        """The token has no session for this one: do without it. False, and it is kept, where it is needed."""
        if lane.rw:
            self.release(lane)
            return False
        lane.close()
        self._size -= 1
        return True

    def give_up(self, error: Lost) -> None:
        """The worker is no more; those who wait try the next one."""
        self.broken = True
        while self._waiting:
            _, future = self._waiting.popleft()
            if not future.done():
                future.set_exception(error)
