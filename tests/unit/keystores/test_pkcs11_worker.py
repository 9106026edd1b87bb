"""The worker when the module hangs: work that waits for an event stands for a call that does not return."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from keystores.errors import TemporarilyUnavailable
from keystores.pkcs11 import worker as workers
from keystores.pkcs11.configuration import TokenName
from keystores.pkcs11.connection import Connection
from keystores.pkcs11.pin import Pin
from keystores.pkcs11.worker import Beat, Work, Worker


@pytest.fixture
def worker() -> Worker:
    """Its connections are never opened: the work here asks no token."""
    return Worker(lambda: Connection("/nowhere", TokenName("nothing"), Pin(Path("/nowhere"), Path("/nowhere"))))


@pytest.fixture
def release() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def hang(release: threading.Event) -> Work[str]:
    def work(_connection: Connection, _beat: Beat) -> str:
        assert release.wait(60)
        return "late"

    return work


def answer(_connection: Connection, _beat: Beat) -> str:
    return "answer"


async def test_a_hang_costs_its_caller_the_patience_and_nobody_else(worker: Worker, release: threading.Event) -> None:
    with pytest.raises(TemporarilyUnavailable, match=r"no answer within 0.1 s"):
        await worker.call(hang(release), patience=0.1)
    assert await worker.call(answer) == "answer"
    release.set()
    assert await worker.call(answer) == "answer"
    await worker.close()


async def test_calls_are_refused_at_once_when_several_hang(worker: Worker, release: threading.Event) -> None:
    for _ in range(workers.STUCK_LIMIT):
        with pytest.raises(TemporarilyUnavailable, match="no answer"):
            await worker.call(hang(release), patience=0.1)
    with pytest.raises(TemporarilyUnavailable, match="hang in the PKCS#11 module"):
        await worker.call(answer)

    release.set()
    async with asyncio.timeout(30):
        while True:
            try:
                assert await worker.call(answer) == "answer"
                break
            except TemporarilyUnavailable:
                await asyncio.sleep(0.01)
    await worker.close()


async def test_slow_work_that_goes_on_is_waited_for(worker: Worker, release: threading.Event) -> None:
    def slow(_connection: Connection, beat: Beat) -> str:
        for _ in range(10):
            release.wait(0.05)
            beat()
        return "done"

    assert await worker.call(slow, patience=0.3) == "done"
    await worker.close()


async def test_the_queue_is_bounded(worker: Worker, release: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "QUEUE_LIMIT", 3)
    waiting = [asyncio.create_task(worker.call(hang(release))) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(TemporarilyUnavailable, match="3 calls wait"):
        await worker.call(answer)
    release.set()
    assert await asyncio.gather(*waiting) == ["late"] * 3
    assert await worker.call(answer) == "answer"
    await worker.close()


async def test_work_that_its_caller_gave_up_is_not_begun(worker: Worker, release: threading.Event) -> None:
    begun = threading.Event()

    def work(_connection: Connection, _beat: Beat) -> None:
        begun.set()

    first = asyncio.create_task(worker.call(hang(release)))
    second = asyncio.create_task(worker.call(work))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.wait({second})
    release.set()
    assert await first == "late"
    await worker.close()
    assert not begun.is_set()


async def test_an_error_of_the_work_reaches_the_caller(worker: Worker) -> None:
    def fail(_connection: Connection, _beat: Beat) -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await worker.call(fail)
    await worker.close()
    with pytest.raises(TemporarilyUnavailable, match="closed"):
        await worker.call(answer)
