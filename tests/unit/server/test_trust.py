"""Bundles as they are remembered between calls, and while the datastore is away."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from identity.bundles import Bundle, X509Authority
from operations.errors import NotFound, TemporarilyUnavailable
from server import trust
from server.datastore.store import DataStore
from server.trust import TrustBundles
from tests.simulators.house import TRUST_DOMAIN

FIRST = Bundle(TRUST_DOMAIN, (X509Authority(b"first"),))
SECOND = Bundle(TRUST_DOMAIN, (X509Authority(b"second"),))


@dataclass
class Site:
    store: DataStore
    bundles: TrustBundles

    async def end(self) -> None:
        """From now on the datastore does not answer."""
        await self.store.close()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    store = await DataStore.open(str(tmp_path / "datastore.sqlite3"))
    await store.set_bundle(FIRST)
    yield Site(store, TrustBundles(store))
    await store.close()


async def test_a_change_is_seen_at_once_and_equal_roots_are_the_same(site: Site) -> None:
    roots = await site.bundles.roots(TRUST_DOMAIN)
    await site.store.set_bundle(FIRST)
    assert await site.bundles.roots(TRUST_DOMAIN) is roots
    await site.store.set_bundle(SECOND)
    assert await site.bundles.roots(TRUST_DOMAIN) == (b"second",)


async def test_a_bundle_that_is_gone_is_not_found(site: Site) -> None:
    assert await site.bundles.roots(TRUST_DOMAIN)
    await site.store.delete_bundle(TRUST_DOMAIN)
    with pytest.raises(NotFound):
        await site.bundles.roots(TRUST_DOMAIN)


async def test_bundles_are_remembered_while_the_datastore_is_away(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    roots = await site.bundles.roots(TRUST_DOMAIN)
    await site.end()
    monkeypatch.setattr(trust, "MAX_AGE", 0.0)
    assert await site.bundles.roots(TRUST_DOMAIN) is roots
    monkeypatch.setattr(trust, "OUTAGE", 0.0)
    with pytest.raises(TemporarilyUnavailable):
        await site.bundles.roots(TRUST_DOMAIN)


async def test_what_was_changed_is_not_remembered_as_it_was(site: Site) -> None:
    await site.bundles.roots(TRUST_DOMAIN)
    await site.store.set_bundle(SECOND)
    await site.end()
    with pytest.raises(TemporarilyUnavailable):
        await site.bundles.roots(TRUST_DOMAIN)


async def test_what_was_never_known_is_not_made_up(site: Site) -> None:
    await site.end()
    with pytest.raises(TemporarilyUnavailable):
        await site.bundles.get(TRUST_DOMAIN)
