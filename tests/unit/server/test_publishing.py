"""Publishers and notifiers beside each other: whom a slow one holds up, what is told again, and what the log says."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from identity.bundles import Bundle, X509Authority
from operations.errors import PermanentlyUnusable, Refused, SpireError, TemporarilyUnavailable
from server import publishing
from server.datastore.store import DataStore
from server.publishing import Publishing
from server.trust import TrustBundles
from tests.simulators.house import TRUST_DOMAIN


def numbered(*names: bytes) -> Bundle:
    return Bundle(TRUST_DOMAIN, tuple(map(X509Authority, names)))


@dataclass
class Place:
    """A publisher and notifier. `fault` is what the next tells fail with; without `open` they hang."""

    name: str = "place"
    fault: SpireError | None = None
    open: asyncio.Event = field(default_factory=asyncio.Event)
    told: list[tuple[str, tuple[bytes, ...]]] = field(default_factory=list[tuple[str, tuple[bytes, ...]]])
    tries: int = 0
    closed: bool = False

    def __post_init__(self) -> None:
        self.open.set()

    async def publish(self, bundle: Bundle) -> None:
        await self._take("published", bundle)

    async def bundle_loaded(self, bundle: Bundle) -> None:
        await self._take("loaded", bundle)

    async def bundle_updated(self, bundle: Bundle) -> None:
        await self._take("updated", bundle)

    async def close(self) -> None:
        self.closed = True

    async def _take(self, what: str, bundle: Bundle) -> None:
        self.tries += 1
        await self.open.wait()
        if self.fault is not None:
            raise self.fault
        self.told.append((what, tuple(each.der for each in bundle.x509_authorities)))

    @property
    def last(self) -> tuple[bytes, ...]:
        return self.told[-1][1] if self.told else ()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "SETTLING", 0.05)
    monkeypatch.setattr(publishing, "FIRST_RETRY", 0.02)
    monkeypatch.setattr(publishing, "LAST_RETRY", 0.1)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[DataStore]:
    store = await DataStore.open(str(tmp_path / "datastore.sqlite3"))
    await store.set_bundle(numbered(b"first"))
    yield store
    await store.close()


@asynccontextmanager
async def running(store: DataStore, publishers: list[Place], notifiers: list[Place]) -> AsyncGenerator[Publishing]:
    made = Publishing(TRUST_DOMAIN, store, TrustBundles(store), publishers, notifiers)
    async with AsyncExitStack() as cleanup:
        cleanup.push_async_callback(made.close)
        await made.loaded()
        tasks = [asyncio.ensure_future(each) for each in made.tasks()]
        try:
            yield made
        finally:
            for task in tasks:
                task.cancel()
            async with asyncio.timeout(10):
                await asyncio.gather(*tasks, return_exceptions=True)


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (record.levelname, record.getMessage(), dict(getattr(record, "fields", {})))
        for record in caplog.records
        if record.levelno >= logging.INFO and "subsystem_name" in getattr(record, "fields", {})
    ]


async def test_the_bundle_is_told_at_the_start_and_at_every_change(store: DataStore) -> None:
    publisher, notifier = Place(), Place()
    async with running(store, [publisher], [notifier]):
        assert notifier.told == [("loaded", (b"first",))]
        await until(lambda: publisher.told == [("published", (b"first",))])
        await store.set_bundle(numbered(b"second"))
        await until(lambda: publisher.last == notifier.last == (b"second",))
        assert [what for what, _ in notifier.told] == ["loaded", "updated"]
        await store.set_bundle(Bundle(type(TRUST_DOMAIN)("other.org")))
        await asyncio.sleep(0.2)
        assert len(notifier.told) == len(publisher.told) == 2
    assert publisher.closed
    assert notifier.closed


async def test_publishers_are_asked_now_and_then_but_notifiers_are_not(
    store: DataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "INTERVAL", 0.02)
    publisher, notifier = Place(), Place()
    async with running(store, [publisher], [notifier]):
        await until(lambda: len(publisher.told) > 3)
        assert notifier.told == [("loaded", (b"first",))]


async def test_a_burst_is_published_once_and_the_newest(store: DataStore) -> None:
    publisher = Place()
    async with running(store, [publisher], []):
        await until(lambda: publisher.told)
        publisher.open.clear()
        await store.set_bundle(numbered(b"0"))
        await until(lambda: publisher.tries == 2)
        for number in range(1, 20):
            await store.set_bundle(numbered(b"%d" % number))
        publisher.open.set()
        await until(lambda: publisher.last == (b"19",))
        assert [names for _, names in publisher.told] == [(b"first",), (b"0",), (b"19",)]


async def test_one_that_hangs_holds_nobody_up_and_is_given_up(
    store: DataStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slow, quick = Place("slow"), Place("quick")
    slow.open.clear()
    monkeypatch.setattr(publishing, "DEADLINE", 0.3)
    async with running(store, [slow, quick], []):
        await until(lambda: quick.told)
        await store.set_bundle(numbered(b"second"))
        await until(lambda: quick.last == (b"second",))
        await until(lambda: slow.tries > 2)
        slow.open.set()
        await until(lambda: slow.last == (b"second",))
        slow.open.clear()  # and stopping does not wait for it
        await store.set_bundle(numbered(b"third"))
        await until(lambda: quick.last == (b"third",))
    failures = [fields for _, text, fields in lines(caplog) if text == "Failed to publish bundle"]
    assert [(each["BundlePublisher"], str(each["error"])) for each in failures] == [("slow", "no answer within 0.3 s")]


async def test_failures_are_told_when_they_begin_change_and_end(
    store: DataStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "spire")
    publisher, notifier = Place(fault=Refused("not ours")), Place()
    async with running(store, [publisher], [notifier]):
        await until(lambda: publisher.tries > 3)
        publisher.fault = TemporarilyUnavailable("it is away")
        tries = publisher.tries
        await until(lambda: publisher.tries > tries + 2)
        publisher.fault = None
        await until(lambda: publisher.told)
        notifier.fault = Refused("no")
        await store.set_bundle(numbered(b"second"))
        await until(lambda: notifier.tries > 3)
        notifier.fault = None
        await until(lambda: notifier.last == (b"second",))
    told = [(level, text, str(fields.get("error", ""))) for level, text, fields in lines(caplog)]
    assert told == [
        ("ERROR", "Failed to publish bundle", "not ours"),
        ("ERROR", "Failed to publish bundle", "it is away"),
        ("INFO", "Bundle is published again", ""),
        ("WARNING", "Notifier failed to handle event", "no"),
        ("INFO", "Notifier handles events again", ""),
    ]


async def test_a_datastore_that_is_away_is_such_a_failure(store: DataStore, caplog: pytest.LogCaptureFixture) -> None:
    publisher = Place()
    await store.delete_bundle(TRUST_DOMAIN)
    async with running(store, [publisher], []):
        await until(lambda: lines(caplog))
        await store.set_bundle(numbered(b"first"))
        await until(lambda: publisher.told)
    assert "trust domain bundle is missing" in str(lines(caplog)[0][2]["error"])


async def test_a_notifier_that_refuses_ends_the_start(store: DataStore, caplog: pytest.LogCaptureFixture) -> None:
    good, bad, worse = Place("good"), Place("bad", Refused("no")), Place("worse", Refused("never"))
    start: Awaitable[object] = running(store, [], [good, bad, worse]).__aenter__()
    with pytest.raises(PermanentlyUnusable, match=r"^one or more notifiers returned an error: no; never$"):
        await start
    assert good.told == [("loaded", (b"first",))]
    assert bad.closed
    errors = [(text, fields["notifier"], fields["event"]) for level, text, fields in lines(caplog) if level == "ERROR"]
    assert errors == [
        ("Notifier failed to handle event", "bad", "bundle loaded"),
        ("Notifier failed to handle event", "worse", "bundle loaded"),
    ]
