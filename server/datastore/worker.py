"""Threads that talk to the database, so that the event loop never waits for a disk.

A worker has one bounded queue and some threads, each with one connection. Waiting writes are gathered into one
transaction with a savepoint each (group commit): the disk is synced once for all of them, and none is acknowledged
before that commit.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import Empty, Full, Queue
from typing import TypeVar

from operations.errors import TemporarilyUnavailable
from server.datastore.jobs import Job, Work
from server.datastore.records import Changes
from server.datastore.session import Outcome, Session

T = TypeVar("T")
Committed = Callable[[Changes], None]


class Worker:
    """`threads` threads over one queue of at most `limit` jobs; a transaction holds at most `batch` of them.

    `session` makes what a thread works with. `committed` is called on the event loop with the changes of each
    committed job, in the order of the commits and before the job's caller resumes. A thread that has had nothing to do
    for `heartbeat` seconds looks whether its connection lives. At most `idle` threads keep theirs while unused.
    """

    def __init__(
        self,
        name: str,
        session: Callable[[Outcome], Session],
        *,
        threads: int = 1,
        limit: int,
        batch: int = 1,
        committed: Committed | None = None,
        heartbeat: float | None = None,
        idle: int | None = None,
    ) -> None:
        self._session = session
        self._batch = batch
        self._committed = committed
        self._heartbeat = heartbeat
        self._loop = asyncio.get_running_loop()
        self._queue: Queue[Job | None] = Queue(limit)
        self._closed = False
        self._sessions: list[Session] = []
        self._threads = [
            threading.Thread(
                target=self._serve,
                args=(idle is None or number < idle,),
                name=f"datastore-{name}-{number}",
                daemon=True,
            )
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    async def run(self, work: Work[T], *, deadline: float) -> T:
        """Run `work` in a transaction and return what it returned, once that is committed.

        After `deadline` seconds the caller is told TemporarilyUnavailable; work that has not begun by then is dropped.
        """
        if self._closed:
            raise TemporarilyUnavailable("the datastore is closed")
        future: asyncio.Future[T] = self._loop.create_future()
        try:
            self._queue.put_nowait(Job(work, future))
        except Full:
            raise TemporarilyUnavailable("the datastore has too many requests waiting; try again") from None
        try:
            async with asyncio.timeout(deadline):
                return await future
        except TimeoutError:
            for session in self._sessions:
                session.break_off()
            raise TemporarilyUnavailable(f"the datastore did not answer within {deadline:g} s; try again") from None

    async def close(self) -> None:
        """Finish what is queued, then end the threads."""
        if self._closed:
            return
        self._closed = True

        def drain() -> None:
            for _ in self._threads:
                self._queue.put(None)
            for thread in self._threads:
                thread.join()

        await asyncio.to_thread(drain)

    def _serve(self, keeps: bool) -> None:
        session = self._session(self)
        self._sessions.append(session)
        try:
            while (jobs := self._take()) is not None:
                if not jobs:
                    session.look()
                    continue
                session.run(jobs)
                if not keeps:
                    session.close()
        except RuntimeError:
            # The loop was closed without closing the worker: nobody waits for an answer any more.
            if not self._loop.is_closed():
                raise
        finally:
            session.close()

    def _take(self) -> list[Job] | None:
        """Wait for a job and take what else is there already; empty when a heartbeat is due, None at the end."""
        try:
            job = self._queue.get(timeout=self._heartbeat)
        except Empty:
            return []
        if job is None:
            return None
        jobs = [job]
        while len(jobs) < self._batch:
            try:
                job = self._queue.get_nowait()
            except Empty:
                break
            if job is None:
                self._queue.put(None)
                break
            jobs.append(job)
        return jobs

    def done(self, job: Job) -> None:
        """Called on a thread."""
        self._loop.call_soon_threadsafe(self._deliver, job)

    def changed(self, changes: Changes) -> None:
        """Called on a thread."""
        if self._committed is not None:
            self._loop.call_soon_threadsafe(self._committed, changes)

    def _deliver(self, job: Job) -> None:
        try:
            if job.error is None and job.changes and self._committed is not None:
                self._committed(job.changes)
        finally:
            if job.future.done():
                pass
            elif job.error is not None:
                job.future.set_exception(job.error)
            else:
                job.future.set_result(job.result)
