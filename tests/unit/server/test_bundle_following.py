"""Relationships of the configuration and of a real datastore, and the endpoints that they lead to."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from identity.bundles import Bundle
from identity.spiffeid import TrustDomain
from operations import logs, metrics
from operations.errors import Refused, TemporarilyUnavailable
from server.config.federation import Federated
from server.datastore.federation import FederationRelationship, Profile
from server.datastore.store import DataStore
from server.federation import following as module
from server.federation.following import Following
from server.trust import TrustBundles
from tests.simulators.bundle_endpoint import Answer, Endpoint, bundle_of, by_svid, serving, svid_context
from tests.simulators.callers import ForeignDomain

OTHER = ForeignDomain.of("other.org")
DOMAIN = TrustDomain("other.org")
PATIENCE = 60.0


@asynccontextmanager
async def stored(folder: Path) -> AsyncGenerator[DataStore]:
    store = await DataStore.open(str(folder / "datastore.sqlite3"))
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def following(store: DataStore, *federates_with: Federated) -> AsyncGenerator[Following]:
    made = Following(federates_with, store, TrustBundles(store))
    task = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


async def until(found: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await found():  # noqa: ASYNC110 - what is waited for is in the datastore
            await asyncio.sleep(0.02)


async def has(store: DataStore, bundle: Bundle) -> None:
    async def there() -> bool:
        return await store.get_bundle(bundle.trust_domain) == bundle

    await until(there)


def relationship(url: str, path: str = "/spire/server") -> FederationRelationship:
    return FederationRelationship(
        trust_domain=DOMAIN,
        bundle_endpoint_url=url,
        profile=Profile.HTTPS_SPIFFE,
        endpoint_spiffe_id=f"spiffe://other.org{path}",
    )


@asynccontextmanager
async def endpoint(folder: Path) -> AsyncGenerator[Endpoint]:
    async with serving(svid_context(folder, OTHER)) as made:
        made.give(bundle_of(OTHER, 1, 3600))
        yield made


class Counters:
    def __init__(self) -> None:
        self.counted: list[tuple[metrics.Key, metrics.Labels]] = []

    def count(self, key: metrics.Key, by: float, labels: metrics.Labels) -> None:
        del by
        self.counted.append((key, labels))

    def gauge(self, key: metrics.Key, value: float, labels: metrics.Labels) -> None:
        pass

    def sample(self, key: metrics.Key, value: float, labels: metrics.Labels) -> None:
        pass


async def test_fetches_are_counted(tmp_path: Path) -> None:
    counters, before = Counters(), metrics.emitters()
    async with stored(tmp_path) as store, endpoint(tmp_path) as served:
        metrics.use([counters])
        try:
            made = Following([by_svid(OTHER, served.url)], store, TrustBundles(store))
            with pytest.raises(Refused):
                await made.refresh(DOMAIN)
            await store.set_bundle(bundle_of(OTHER))
            await made.refresh(DOMAIN)
        finally:
            metrics.use(before)
    domain = ("trust_domain_id", "other.org")
    fetch = ("bundle_manager", "fetch", "federated_bundle")
    assert counters.counted == [
        (fetch, (domain, ("status", "PermissionDenied"))),
        (("bundle_manager", "update", "federated_bundle"), (domain,)),
        (fetch, (domain, ("status", "OK"))),
    ]


async def test_a_static_relationship(tmp_path: Path) -> None:
    """And what an operator or another program does to the bundle between two polls."""
    async with stored(tmp_path) as store, endpoint(tmp_path) as served:
        await store.set_bundle(bundle_of(OTHER))
        async with following(store, by_svid(OTHER, served.url)) as made:
            await has(store, bundle_of(OTHER, 1, 3600))
            served.give(bundle_of(OTHER, 2, 3600))
            assert await made.refresh(DOMAIN)
            assert await store.get_bundle(DOMAIN) == bundle_of(OTHER, 2, 3600)
            served.give(bundle_of(OTHER, 1, 60))
            with pytest.raises(
                Refused, match=r"^failed to fetch federated bundle from endpoint: the fetched bundle has"
            ):
                await made.refresh(DOMAIN)
            assert await store.get_bundle(DOMAIN) == bundle_of(OTHER, 2, 3600)
            # The operator's is the latest, whatever its number.
            await store.set_bundle(bundle_of(OTHER))
            assert await made.refresh(DOMAIN)
            assert await store.get_bundle(DOMAIN) == bundle_of(OTHER, 1, 60)
            await store.delete_bundle(DOMAIN)
            with pytest.raises(Refused, match="local copy of bundle not found"):
                await made.refresh(DOMAIN)
            assert not await made.refresh(TrustDomain("third.org"))


async def test_relationships_that_come_change_and_go(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "spire")
    async with stored(tmp_path) as store, endpoint(tmp_path) as served, endpoint(tmp_path) as second:
        await store.set_bundle(bundle_of(OTHER))
        async with following(store) as made:
            assert not await made.refresh(DOMAIN)
            await store.create_federation_relationship(relationship(served.url))
            made.changed()
            await has(store, bundle_of(OTHER, 1, 3600))
            assert served.asked == ["/bundle"]

            second.give(bundle_of(OTHER, 3, 3600))
            await store.update_federation_relationship(relationship(second.url))
            made.changed()
            await has(store, bundle_of(OTHER, 3, 3600))
            assert served.asked == ["/bundle"]

            await store.delete_federation_relationship(DOMAIN)
            made.changed()
            await until(lambda: said(caplog, "No longer polling for updates", 2))
            assert not await made.refresh(DOMAIN)
            assert await store.get_bundle(DOMAIN) == bundle_of(OTHER, 3, 3600)
    messages = [each.message for each in caplog.records]
    for line in (
        "Trust domain is now managed",
        "Polling for bundle update",
        "Bundle refreshed",
        "Scheduling next bundle refresh",
        "Updated configuration for managed trust domain",
        "Trust domain no longer managed",
    ):
        assert line in messages


async def said(caplog: pytest.LogCaptureFixture, line: str, times: int = 1) -> bool:
    return [each.message for each in caplog.records].count(line) >= times


async def test_what_the_configuration_says_wins(tmp_path: Path) -> None:
    async with stored(tmp_path) as store, endpoint(tmp_path) as served, endpoint(tmp_path) as dynamic:
        await store.set_bundle(bundle_of(OTHER))
        await store.create_federation_relationship(relationship(dynamic.url))
        async with following(store, by_svid(OTHER, served.url)) as made:
            await has(store, bundle_of(OTHER, 1, 3600))
            await made.refresh(DOMAIN)
        assert (served.asked, dynamic.asked) == (["/bundle"] * 2, [])


async def test_another_servers_change_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RELOAD", 0.05)
    async with stored(tmp_path) as store, endpoint(tmp_path) as served:
        await store.set_bundle(bundle_of(OTHER))
        async with following(store):
            await store.create_federation_relationship(relationship(served.url))
            await has(store, bundle_of(OTHER, 1, 3600))


async def test_a_bundle_that_was_missing_is_used_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with (
        stored(tmp_path) as store,
        endpoint(tmp_path) as served,
        following(store, by_svid(OTHER, served.url)),
    ):
        await until(lambda: said(caplog, "Error updating bundle"))
        assert served.asked == []
        await store.set_bundle(bundle_of(OTHER))
        await has(store, bundle_of(OTHER, 1, 3600))


async def test_a_domain_served_by_another(tmp_path: Path) -> None:
    """The endpoint is known by the bundle of its own trust domain, which may come the same way."""
    third = ForeignDomain.of("third.org")
    by_other = Federated(TrustDomain("third.org"), "", by_svid(OTHER, "").endpoint_id)
    async with stored(tmp_path) as store, endpoint(tmp_path) as served:
        served.give(bundle_of(third, 4), "/third")
        url = served.url.replace("/bundle", "/third")
        async with following(store, by_svid(OTHER, served.url), dataclasses.replace(by_other, url=url)):
            await store.set_bundle(bundle_of(OTHER))
            await has(store, bundle_of(third, 4))
            await has(store, bundle_of(OTHER, 1, 3600))


async def test_what_is_set_meanwhile_is_not_overwritten(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An endpoint that was known by a bundle which is no longer there proves nothing."""
    async with stored(tmp_path) as store, endpoint(tmp_path) as served:
        await store.set_bundle(bundle_of(OTHER))
        go_on = threading.Event()
        served.answers["/bundle"] = Answer(bundle_of(OTHER, 9).to_jwks().encode(), after=go_on)
        async with following(store, by_svid(OTHER, served.url)):
            await until(lambda: asked(served, 1))
            newer = bundle_of(ForeignDomain.of("other.org"), 1)
            await store.set_bundle(newer)
            go_on.set()
            await until(lambda: said(caplog, "Error updating bundle"))
            [line] = [each for each in caplog.records if each.levelname == "ERROR"]
            assert "does not prove that it is" in str(vars(line)["fields"]["error"])
            assert await store.get_bundle(DOMAIN) == newer


async def asked(served: Endpoint, times: int) -> bool:
    return len(served.asked) >= times


async def test_no_datastore(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was followed is followed on; of the same outage there is one line."""
    monkeypatch.setattr(module, "RELOAD", 0.02)
    async with stored(tmp_path) as store, endpoint(tmp_path) as served:
        await store.set_bundle(bundle_of(OTHER))
        await store.create_federation_relationship(relationship(served.url))
        away = False
        listing = store.list_federation_relationships

        async def listed(*, with_bundles: bool) -> object:
            if away:
                raise TemporarilyUnavailable("the database is away")
            return await listing(with_bundles=with_bundles)

        monkeypatch.setattr(store, "list_federation_relationships", listed)
        async with following(store) as made:
            await has(store, bundle_of(OTHER, 1, 3600))
            away = True
            await until(lambda: said(caplog, "Failed to reload configs; following those there were"))
            served.give(bundle_of(OTHER, 2, 3600))
            assert await made.refresh(DOMAIN)
            assert await store.get_bundle(DOMAIN) == bundle_of(OTHER, 2, 3600)
            await asyncio.sleep(0.2)
            assert [each.message for each in caplog.records].count(
                "Failed to reload configs; following those there were"
            ) == 1


async def test_a_thousand_relationships_take_turns(tmp_path: Path) -> None:
    names = [f"td{number}.org" for number in range(60)]
    async with stored(tmp_path) as store, endpoint(tmp_path) as served:
        await store.set_bundle(bundle_of(OTHER))
        served.answers["/bundle"] = Answer(b"", "503 Busy")
        endpoint_id = by_svid(OTHER, "").endpoint_id
        many: Sequence[Federated] = [Federated(TrustDomain(name), served.url, endpoint_id) for name in names]
        async with following(store, *many):
            await until(lambda: asked(served, len(names)))
            assert served.most <= module.AT_ONCE
            # And then they sleep.
            await asyncio.sleep(0.3)
            assert len(served.asked) == len(names)


def test_when_a_bundle_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_JITTER", 0.0)
    waits = module.waiting_time
    assert [waits(hint, 0) for hint in (0, 1, 60, 300, 86400, 2**62)] == [300, 15, 15, 75, 21600, 86400]
    assert [waits(0, failures) for failures in (1, 2, 3, 4, 1000)] == [60, 120, 240, 300, 300]
    assert [waits(60, failures) for failures in (1, 1000)] == [15, 15]
    assert [waits(86400, failures) for failures in (1, 9, 10, 1000)] == [60, 15360, 21600, 21600]


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:  # pyright: ignore[reportUnusedFunction]
    logs.reset_level()
    caplog.set_level("INFO", "spire")
