"""The threads that talk to the database: limits, deadlines, and errors of the work itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

import pytest
from sqlalchemy import Connection, text

from operations.errors import PermanentlyUnusable, TemporarilyUnavailable
from server.datastore.records import Changes
from server.datastore.session import Session
from server.datastore.sqlite import Sqlite
from server.datastore.worker import Worker

DEADLINE = 60.0
NEVER = 0.05


@pytest.fixture
async def database() -> AsyncIterator[Sqlite]:
    made = Sqlite(":memory:")
    made.identify()
    yield made
    made.dispose()


@pytest.fixture
async def worker(database: Sqlite) -> AsyncIterator[Worker]:
    made = working_on(database)
    yield made
    await made.close()


def working_on(database: Sqlite, committed: Callable[[Changes], None] | None = None) -> Worker:
    return Worker(
        "test", lambda outcome: Session(database, outcome, writer=True), limit=3, batch=8, committed=committed
    )


class Gate:
    """Work that holds the worker until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self, _connection: Connection, _changes: Changes) -> None:
        self.entered.set()
        assert self.opened.wait(DEADLINE)


def nothing(_connection: Connection, _changes: Changes) -> None:
    return None


def execute(statement: str) -> Callable[[Connection, Changes], None]:
    def work(connection: Connection, _: Changes) -> None:
        connection.execute(text(statement))

    return work


def names(connection: Connection, _: Changes) -> list[str]:
    return list(connection.scalars(text("SELECT name FROM t ORDER BY name")))


async def held(worker: Worker, gate: Gate) -> asyncio.Task[None]:
    task = asyncio.create_task(worker.run(gate, deadline=DEADLINE))
    await asyncio.to_thread(gate.entered.wait, DEADLINE)
    return task


async def test_more_than_the_limit_is_refused_at_once(worker: Worker) -> None:
    gate = Gate()
    tasks = [await held(worker, gate)]
    tasks += [asyncio.create_task(worker.run(nothing, deadline=DEADLINE)) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(TemporarilyUnavailable, match="too many requests waiting"):
        await worker.run(nothing, deadline=DEADLINE)
    gate.opened.set()
    await asyncio.gather(*tasks)
    await worker.run(nothing, deadline=DEADLINE)


async def test_what_waited_past_its_deadline_or_was_cancelled_is_not_done(worker: Worker) -> None:
    await worker.run(execute("CREATE TABLE t (name TEXT)"), deadline=DEADLINE)
    gate = Gate()
    holding = await held(worker, gate)
    with pytest.raises(TemporarilyUnavailable, match=r"did not answer within 0\.05 s"):
        await worker.run(execute("INSERT INTO t VALUES ('late')"), deadline=NEVER)
    cancelled = asyncio.create_task(worker.run(execute("INSERT INTO t VALUES ('cancelled')"), deadline=DEADLINE))
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    gate.opened.set()
    await holding
    assert await worker.run(names, deadline=DEADLINE) == []


async def test_work_that_fails_takes_only_its_own_writes_back(worker: Worker) -> None:
    await worker.run(execute("CREATE TABLE t (name TEXT)"), deadline=DEADLINE)

    def broken(connection: Connection, _: Changes) -> None:
        connection.execute(text("INSERT INTO t VALUES ('broken')"))
        raise KeyError("a bug")

    gate = Gate()
    holding = await held(worker, gate)
    together = [
        asyncio.create_task(worker.run(execute("INSERT INTO t VALUES ('a')"), deadline=DEADLINE)),
        asyncio.create_task(worker.run(broken, deadline=DEADLINE)),
        asyncio.create_task(worker.run(execute("INSERT INTO t VALUES ('b')"), deadline=DEADLINE)),
    ]
    await asyncio.sleep(0)
    gate.opened.set()
    await holding
    first, second, third = await asyncio.gather(*together, return_exceptions=True)
    assert (first, third) == (None, None)
    assert isinstance(second, KeyError)
    with pytest.raises(KeyError, match="a bug"):
        await worker.run(broken, deadline=DEADLINE)
    assert await worker.run(names, deadline=DEADLINE) == ["a", "b"]


class Reluctant(Sqlite):
    """A database that cannot be opened at first."""

    tries = 0

    def connect(self, *, writer: bool) -> Connection:
        connection = super().connect(writer=writer)
        self.tries += 1
        if self.tries == 1:
            try:
                connection.execute(text("no such statement"))
            finally:
                connection.close()
        return connection


async def test_a_database_that_cannot_be_opened_is_tried_again() -> None:
    database = Reluctant(":memory:")
    database.identify()
    worker = working_on(database)
    with pytest.raises(PermanentlyUnusable, match="refused a statement"):
        await worker.run(nothing, deadline=DEADLINE)
    await worker.run(nothing, deadline=DEADLINE)
    await worker.close()
    database.dispose()


async def test_a_subscriber_that_fails_keeps_no_writer_waiting(database: Sqlite) -> None:
    def fails(_: Changes) -> None:
        raise KeyError("a bug of a subscriber")

    def change(_: Connection, changes: Changes) -> str:
        changes.bundles.add("example.org")
        return "done"

    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(repr(context["exception"])))
    worker = working_on(database, fails)
    assert await worker.run(change, deadline=DEADLINE) == "done"
    assert told == ["KeyError('a bug of a subscriber')"]
    await worker.close()


def test_a_loop_that_ends_early_leaves_no_trace(
    capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    gate = Gate()
    threads: set[threading.Thread] = set()

    async def crash() -> None:
        database = Sqlite(":memory:")
        database.identify()
        before = set(threading.enumerate())
        worker = working_on(database)
        threads.update(set(threading.enumerate()) - before)
        task = asyncio.create_task(worker.run(gate, deadline=DEADLINE))
        await asyncio.to_thread(gate.entered.wait, DEADLINE)
        task.cancel()
        database.dispose()

    asyncio.run(crash())
    gate.opened.set()
    for thread in threads:
        if thread.name.startswith("datastore-"):
            thread.join(DEADLINE)
            assert not thread.is_alive()
    assert capfd.readouterr().err == ""
    assert not recwarn.list
