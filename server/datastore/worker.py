"""Threads that talk to the database, so that the event loop never waits for a disk.

A worker has one bounded queue and some threads, each with one connection. Waiting writes are gathered into one
transaction with a savepoint each (group commit): the disk is synced once for all of them, and none is acknowledged
before that commit.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import Empty, Full, Queue
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sqlalchemy.exc import DBAPIError, IntegrityError

from operations.errors import AlreadyExists, SpireError, TemporarilyUnavailable
from server.datastore.records import Changes

if TYPE_CHECKING:
    from sqlalchemy import Connection

T = TypeVar("T")
Work = Callable[["Connection", Changes], T]


@dataclass(slots=True)
class _Job(Generic[T]):
    work: Work[T]
    future: asyncio.Future[T]
    changes: Changes = field(default_factory=Changes)
    result: T | None = None
    error: BaseException | None = None


class Worker:
    """`threads` threads over one queue of at most `limit` jobs; a transaction holds at most `batch` of them.

    `committed` is called on the event loop with the changes of each committed job, in the order of the commits and
    before the job's caller resumes.
    """

    def __init__(
        self,
        name: str,
        connect: Callable[[], Connection],
        translate: Callable[[DBAPIError], SpireError],
        *,
        threads: int = 1,
        limit: int,
        batch: int = 1,
        committed: Callable[[Changes], None] | None = None,
    ) -> None:
        self._connect = connect
        self._translate = translate
        self._batch = batch
        self._committed = committed
        self._loop = asyncio.get_running_loop()
        self._queue: Queue[_Job[Any] | None] = Queue(limit)
        self._closed = False
        self._threads = [
            threading.Thread(target=self._serve, name=f"datastore-{name}-{number}", daemon=True)
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
        job = _Job(work, future)
        try:
            self._queue.put_nowait(job)
        except Full:
            raise TemporarilyUnavailable("the datastore has too many requests waiting; try again") from None
        try:
            async with asyncio.timeout(deadline):
                return await future
        except TimeoutError:
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

    def _serve(self) -> None:
        connection: Connection | None = None
        try:
            while jobs := self._take():
                if connection is None:
                    connection = self._connected(jobs)
                if connection is not None:
                    self._transact(connection, jobs)
                for job in jobs:
                    self._loop.call_soon_threadsafe(self._deliver, job)
        except RuntimeError:
            # The loop was closed without closing the worker: nobody waits for an answer any more.
            if not self._loop.is_closed():
                raise
        finally:
            if connection is not None:
                connection.close()

    def _connected(self, jobs: Sequence[_Job[Any]]) -> Connection | None:
        try:
            return self._connect()
        except DBAPIError as error:
            for job in jobs:
                job.error = self._chained(error)
            return None

    def _take(self) -> list[_Job[Any]]:
        """Wait for a job and take what else is there already; empty when the worker closes."""
        jobs: list[_Job[Any]] = []
        job = self._queue.get()
        while job is not None:
            jobs.append(job)
            if len(jobs) == self._batch:
                return jobs
            try:
                job = self._queue.get_nowait()
            except Empty:
                return jobs
        if jobs:
            self._queue.put(None)
        return jobs

    def _transact(self, connection: Connection, jobs: list[_Job[Any]]) -> None:
        jobs[:] = [job for job in jobs if not job.future.cancelled()]
        if len(jobs) > 1 and self._together(connection, jobs):
            return
        for job in jobs:
            if not job.future.cancelled():
                self._alone(connection, job)

    def _together(self, connection: Connection, jobs: Sequence[_Job[Any]]) -> bool:
        """One transaction for all; False when the database failed and nothing was written."""
        try:
            with connection.begin():
                for job in jobs:
                    job.changes = Changes()
                    job.error = None
                    try:
                        with connection.begin_nested():
                            job.result = job.work(connection, job.changes)
                    except IntegrityError as error:
                        job.error = _conflict(error)
                    except DBAPIError:
                        raise
                    except Exception as error:  # noqa: BLE001 - handed to the job's caller, the others go on
                        job.error = error
        except DBAPIError:
            return False
        return True

    def _alone(self, connection: Connection, job: _Job[Any]) -> None:
        job.changes = Changes()
        job.error = None
        try:
            with connection.begin():
                job.result = job.work(connection, job.changes)
        except IntegrityError as error:
            job.error = _conflict(error)
        except DBAPIError as error:
            job.error = self._chained(error)
        except Exception as error:  # noqa: BLE001 - handed to the job's caller
            job.error = error

    def _deliver(self, job: _Job[Any]) -> None:
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

    def _chained(self, error: DBAPIError) -> SpireError:
        told = self._translate(error)
        told.__cause__ = error
        return told


def _conflict(error: IntegrityError) -> SpireError:
    """The statements check first and say what exists; this is for two servers that write at the same time."""
    told = AlreadyExists("a record with this key exists already, or one that it refers to does not")
    told.__cause__ = error
    return told
