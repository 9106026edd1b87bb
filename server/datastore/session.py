"""One thread's connection: transactions on it, and what to do when it is lost.

Work that was not being committed yet is done once more on a new connection; the caller of work that was being
committed is told that nobody knows whether it was made.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Protocol

from sqlalchemy.exc import DBAPIError, IntegrityError

from operations import logs
from operations.errors import AlreadyExists, InvalidArgument, SpireError, TemporarilyUnavailable
from server.datastore.jobs import Job
from server.datastore.records import Changes

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from server.datastore.backend import Backend

# How often a transaction that loses to another session is tried, and the longest pause before it is again (seconds).
_TRIES = 5
_PAUSE = 0.05
# Seconds. Databases end statements sooner, and their hosts' silence is noticed sooner: this is for one that is frozen.
_HOPELESS = 120.0


class Follower(Protocol):
    """Hears of commits, on the writer's thread."""

    def note(self, changes: Changes) -> None: ...

    def reconnected(self, connection: Connection) -> Changes:
        """What changed without being noted; called inside the first transaction of each connection but the first."""
        ...


class Outcome(Protocol):
    """Hears what became of things, in the order in which it happened."""

    def done(self, job: Job) -> None: ...

    def changed(self, changes: Changes) -> None: ...


class _Lost(Exception):
    """The connection is gone; jobs that are not done may be tried on another."""


class Session:
    """Belongs to one thread. A connection is made anew when it is older than `lifetime` seconds; 0 means never."""

    def __init__(
        self,
        database: Backend,
        outcome: Outcome,
        *,
        writer: bool = False,
        follower: Follower | None = None,
        lifetime: float = 0.0,
    ) -> None:
        self._database = database
        self._outcome = outcome
        self._writer = writer
        self._follower = follower
        self._lifetime = lifetime
        self._connection: Connection | None = None
        self._opened = 0.0
        self._before = False
        self._away = False
        # What another thread may touch.
        self._guard = threading.Lock()
        self._socket: socket.socket | None = None
        self._busy_since: float | None = None

    def run(self, jobs: Sequence[Job]) -> None:
        """Do the jobs: each is done with a result or an error, unless its caller went away before it began."""
        with self._busy():
            self._run(jobs)

    def look(self) -> None:
        """Make sure that the connection lives, or that there is a new one."""
        with self._busy():
            if self._connection is not None:
                try:
                    with self._connection.begin():
                        self._connection.exec_driver_sql("SELECT 1")
                except DBAPIError:
                    self.close()
            self._connected([])

    def break_off(self) -> None:
        """From another thread: cut a connection that has not answered for a hopelessly long time."""
        with self._guard:
            since = self._busy_since
            if self._socket is not None and since is not None and time.monotonic() - since > _HOPELESS:
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        with self._guard:
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    @contextmanager
    def _busy(self) -> Generator[None]:
        self._busy_since = time.monotonic()
        try:
            yield
        finally:
            self._busy_since = None

    def _run(self, jobs: Sequence[Job]) -> None:
        for again in (True, False):
            pending = [job for job in jobs if not (job.done or job.future.cancelled())]
            connection = self._connected(pending) if pending else None
            if connection is None:
                return
            try:
                self._transact(connection, pending)
                break
            except _Lost as lost:
                self.close()
                if not again:
                    self._fail(pending, lost.__cause__)
        if self._lifetime and time.monotonic() - self._opened > self._lifetime:
            self.close()

    def _connected(self, jobs: Sequence[Job]) -> Connection | None:
        """The connection, made where there is none. None where that fails, which the jobs then say."""
        if self._connection is not None:
            return self._connection
        try:
            self._connection = connection = self._database.connect(writer=self._writer)
            self._socket = self._database.socket(connection)
            if self._before and self._follower is not None:
                with connection.begin():
                    changes = self._follower.reconnected(connection)
                if changes:
                    self._outcome.changed(changes)
        except (DBAPIError, SpireError) as error:
            self.close()
            self._fail(jobs, error)
            self._log(error)
            return None
        self._log(None)
        self._before = True
        self._opened = time.monotonic()
        return connection

    def _transact(self, connection: Connection, jobs: Sequence[Job]) -> None:
        if len(jobs) > 1 and self._together(connection, jobs):
            return
        for job in jobs:
            if not job.future.cancelled():
                self._alone(connection, job)

    def _together(self, connection: Connection, jobs: Sequence[Job]) -> bool:
        """One transaction for all; False when the database failed and nothing was written."""
        committing = False
        try:
            with connection.begin():
                for job in jobs:
                    job.start()
                    try:
                        with connection.begin_nested():
                            job.result = job.work(connection, job.changes)
                    except IntegrityError as error:
                        job.error = _conflict(error)
                    except DBAPIError as error:
                        job.error = self._fault_of_caller(error)
                    except Exception as error:  # noqa: BLE001 - handed to the job's caller, the others go on
                        job.error = error
                committing = True
        except DBAPIError as error:
            if not error.connection_invalidated:
                return False
            self._lost(jobs if committing else [], error)
            raise _Lost from error
        self._finish(jobs)
        return True

    def _fault_of_caller(self, error: DBAPIError) -> SpireError:
        """What its caller is told, while the others go on. Raises the error if the database failed them all."""
        told = self._database.translate(error)
        if error.connection_invalidated or not isinstance(told, InvalidArgument):
            raise error
        told.__cause__ = error
        return told

    def _alone(self, connection: Connection, job: Job) -> None:
        for last in (*([False] * (_TRIES - 1)), True):
            committing = False
            job.start()
            try:
                with connection.begin():
                    job.result = job.work(connection, job.changes)
                    committing = True
            except IntegrityError as error:
                job.error = _conflict(error)
            except DBAPIError as error:
                if error.connection_invalidated:
                    self._lost([job] if committing else [], error)
                    raise _Lost from error
                if self._database.passing(error) and not last:
                    time.sleep(random.uniform(0, _PAUSE))  # noqa: S311 - so that two do not meet again
                    continue
                job.error = self._chained(error)
            except Exception as error:  # noqa: BLE001 - handed to the job's caller
                job.error = error
            self._finish([job])
            return

    def _finish(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            job.done = True
            if self._follower is not None and job.error is None:
                self._follower.note(job.changes)
            self._outcome.done(job)

    def _lost(self, jobs: Sequence[Job], error: DBAPIError) -> None:
        """The jobs were being committed: their changes are heard of by the next connection, if they were made."""
        for job in jobs:
            if job.error is None:
                job.error = TemporarilyUnavailable(
                    f"the connection to the database {self._database.where} was lost while a change was committed:"
                    " look whether it was made before you try again"
                )
                job.error.__cause__ = error
        self._finish(jobs)

    def _fail(self, jobs: Sequence[Job], error: BaseException | None) -> None:
        unfinished = [job for job in jobs if not job.done]
        for job in unfinished:
            job.error = self._chained(error)
        self._finish(unfinished)

    def _chained(self, error: BaseException | None) -> BaseException:
        if isinstance(error, DBAPIError):
            told: SpireError = self._database.translate(error)
        else:
            # An error of its own for each caller, because each gets a traceback.
            told = type(error)(str(error)) if isinstance(error, SpireError) else TemporarilyUnavailable(str(error))
        told.__cause__ = error
        return told

    def _log(self, error: BaseException | None) -> None:
        """Tell once that the database is away, and once that it is back."""
        if self._database.heartbeat is None or not self._writer or self._away == (error is not None):
            return
        self._away = error is not None
        log = logs.get("sql")
        if error is not None:
            log.error("Lost the database; trying again until it is back", error=str(self._chained(error)))
        else:
            log.info("The database is back")


def _conflict(error: IntegrityError) -> SpireError:
    """The statements check first and say what exists; this is for two servers that write at the same time."""
    told = AlreadyExists("a record with this key exists already, or one that it refers to does not")
    told.__cause__ = error
    return told
