"""The thread that owns a connection to a token, and the asyncio side of it.

A call into a PKCS#11 module can hang for minutes. It then costs its caller the patience below and the process one
thread: the next call gets a fresh thread with a fresh session.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

from keystores.errors import TemporarilyUnavailable
from keystores.pkcs11.connection import Connection

T = TypeVar("T")
V = TypeVar("V")
Beat = Callable[[], None]
Work = Callable[[Connection, Beat], T]
"""Blocking work on the connection; it calls the second argument whenever the device has answered."""

PATIENCE = 10.0
"""Seconds without an answer from the device after which a call is given up."""
SHORTEST_LOOK = 0.05
QUEUE_LIMIT = 1000
"""Calls that may wait for one token."""
STUCK_LIMIT = 3
"""Threads that may hang in the module before calls are refused at once."""


class _Job(Generic[T]):
    def __init__(self, work: Work[T]) -> None:
        self.future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()
        self._work = work

    def run(self, connection: Connection, beat: Beat) -> None:
        if self.future.cancelled():
            return
        try:
            result = self._work(connection, beat)
        except Exception as error:  # noqa: BLE001 - nothing is dropped: the caller gets it
            self._deliver(self.future.set_exception, error)
        else:
            self._deliver(self.future.set_result, result)

    def _deliver(self, settle: Callable[[V], None], outcome: V) -> None:
        def settle_unless_given_up() -> None:
            if not self.future.done():
                settle(outcome)

        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(settle_unless_given_up)


class _Thread:
    """Runs jobs in order on its own connection until it is told to stop."""

    def __init__(self, connection: Connection) -> None:
        self.inbox: SimpleQueue[_Job[object] | None] = SimpleQueue()
        self._connection = connection
        self._answered_at: float | None = None
        self._thread = threading.Thread(target=self._run, name="pkcs11", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        self._answered_at = time.monotonic()

    def _run(self) -> None:
        while (job := self.inbox.get()) is not None:
            self._beat()
            job.run(self._connection, self._beat)
            self._answered_at = None
        self._connection.close()

    @property
    def silent_for(self) -> float:
        """Seconds since the device last answered; 0 while it is not asked anything."""
        answered_at = self._answered_at
        return 0.0 if answered_at is None else time.monotonic() - answered_at

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        """End after the jobs that wait, and close the connection."""
        self.inbox.put(None)

    async def join(self, patience: float) -> None:
        await asyncio.to_thread(self._thread.join, patience)


class Worker:
    """The token, as seen from the event loop."""

    def __init__(self, connect: Callable[[], Connection]) -> None:
        self._connect = connect
        self._thread = _Thread(connect())
        self._stuck: list[_Thread] = []
        self._waiting = 0
        self._closed = False

    async def call(self, work: Work[T], *, patience: float | None = None) -> T:
        """Run the work in the thread. Raises what it raises, and TemporarilyUnavailable after the patience,
        which is PATIENCE when None.

        A caller that gives up before its turn takes the work with it; work that has begun goes on to its end.
        """
        self._check()
        thread = self._thread
        job = _Job(work)
        self._waiting += 1
        try:
            thread.inbox.put(job)  # type: ignore[arg-type]  # a job delivers its own result: its type stays inside
            self._watch(thread, job.future, PATIENCE if patience is None else patience)
            return await job.future
        finally:
            self._waiting -= 1
            job.future.cancel()

    def _watch(self, thread: _Thread, future: asyncio.Future[T], patience: float) -> None:
        """Look again when the patience may be at its end; at its end, fail the call and leave the thread to itself."""
        if future.done():
            return
        left = patience - thread.silent_for
        if left <= 0:
            self._abandon(thread)
            future.set_exception(TemporarilyUnavailable(f"the PKCS#11 module gave no answer within {patience:g} s"))
            return
        timer = future.get_loop().call_later(max(left, SHORTEST_LOOK), self._watch, thread, future, patience)
        future.add_done_callback(lambda _: timer.cancel())

    def check_open(self) -> None:
        """Raises TemporarilyUnavailable after `close`."""
        if self._closed:
            raise TemporarilyUnavailable("the key manager is closed")

    def _check(self) -> None:
        self.check_open()
        if self._waiting >= QUEUE_LIMIT:
            raise TemporarilyUnavailable(f"{QUEUE_LIMIT} calls wait for the token already")
        self._stuck = [thread for thread in self._stuck if thread.alive]
        if len(self._stuck) >= STUCK_LIMIT:
            raise TemporarilyUnavailable(f"{STUCK_LIMIT} calls hang in the PKCS#11 module; it is not asked again yet")

    def _abandon(self, thread: _Thread) -> None:
        if thread is self._thread:
            thread.stop()
            self._stuck.append(thread)
            self._thread = _Thread(self._connect())

    async def close(self) -> None:
        """End the thread, unless it hangs."""
        if not self._closed:
            self._closed = True
            self._thread.stop()
            await self._thread.join(PATIENCE)
