"""SVIDStores: what is put into them, when, and what is taken out again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from cryptography.hazmat.primitives.serialization import load_der_private_key

from agent.cache import X509Cache
from agent.entries import Entry
from agent.svid_stores import SvidStores
from agent.workload_update import X509Svid
from identity import der
from identity.bundles import Bundle, X509Authority
from identity.selectors import Selector
from identity.spiffeid import TrustDomain
from operations.errors import InvalidArgument, TemporarilyUnavailable
from plugins.svidstore import StoredX509Svid
from tests.simulators.fake_server import FakeServer
from tests.simulators.in_process_agent import Home, until

OWN = Bundle(TrustDomain("example.org"), (X509Authority(b"root"),))
OTHER = Bundle(TrustDomain("other.org"), (X509Authority(b"other"),))


@dataclass
class Store:
    """Keeps what it is given, by its place, unless it is told to fail."""

    name: str = "disk"
    kept: dict[tuple[str, ...], StoredX509Svid] = field(default_factory=dict[tuple[str, ...], StoredX509Svid])
    calls: list[str] = field(default_factory=list[str])
    failing: Exception | None = None
    hang: bool = False

    async def put(self, svid: StoredX509Svid, metadata: Sequence[str]) -> None:
        await self._answer("put", metadata)
        self.kept[tuple(metadata)] = svid

    async def delete(self, metadata: Sequence[str]) -> None:
        await self._answer("delete", metadata)
        self.kept.pop(tuple(metadata), None)

    async def _answer(self, call: str, metadata: Sequence[str]) -> None:
        self.calls.append(f"{call} {' '.join(metadata)}")
        if self.hang:
            await asyncio.Event().wait()
        if self.failing is not None:
            raise self.failing


def entry(entry_id: str, *selectors: str, federates_with: tuple[str, ...] = ()) -> Entry:
    chosen = frozenset(map(Selector.parse, selectors or ("disk:name:a", "disk:folder:b")))
    spiffe_id = f"spiffe://example.org/{entry_id}"
    return Entry(entry_id, spiffe_id, chosen, federates_with=federates_with, store_svid=True)


def svid(entry_id: str, chain: bytes = b"leaf") -> X509Svid:
    return X509Svid(f"spiffe://example.org/{entry_id}", (chain,), b"key", 1e10, 1e10)


class Site:
    def __init__(self, *stores: Store) -> None:
        self.cache = X509Cache(OWN)
        self.stores = SvidStores(self.cache, {store.name: store for store in stores}, interval=0.01)

    async def have(self, *entries: Entry, removed: Sequence[str] = (), chain: bytes = b"leaf") -> None:
        self.put_into_cache(entries, removed, chain)
        await self.stores.update()

    def put_into_cache(self, entries: Sequence[Entry], removed: Sequence[str] = (), chain: bytes = b"leaf") -> None:
        self.cache.set_entries(entries, removed)
        self.cache.take_due()
        self.cache.store({each.id: svid(each.id, chain) for each in entries})


async def test_what_a_store_is_given() -> None:
    store = Store()
    site = Site(store)
    site.cache.set_bundles({"other.org": OTHER})
    await site.have(entry("a", federates_with=("other.org", "unknown.org", "example.org")))
    assert store.kept == {
        ("folder:b", "name:a"): StoredX509Svid(
            spiffe_id="spiffe://example.org/a",
            chain=(b"leaf",),
            private_key=b"key",
            bundle=(b"root",),
            expires_at=10**10,
            federated_bundles={"other.org": (b"other",)},
        )
    }
    await site.stores.update()
    assert store.calls == ["put folder:b name:a"], "once, as long as nothing changes"


async def test_renewals_and_changed_bundles_are_put_again() -> None:
    store = Store()
    site = Site(store)
    await site.have(entry("a"))
    site.cache.store({"a": svid("a", b"renewed")})
    await site.stores.update()
    assert [each.chain for each in store.kept.values()] == [(b"renewed",)]
    site.cache.set_bundles({"example.org": Bundle(OWN.trust_domain, (X509Authority(b"new root"),))})
    await site.stores.update()
    assert [each.bundle for each in store.kept.values()] == [(b"new root",)]
    assert len(store.calls) == 3


async def test_another_place_and_no_place_any_more() -> None:
    first, second = Store(), Store("vault")
    site = Site(first, second)
    await site.have(entry("a", "disk:x"))
    await site.have(entry("a", "disk:y"))
    assert first.calls == ["put x", "delete x", "put y"]
    await site.have(entry("a", "vault:z"))
    assert not first.kept
    assert list(second.kept) == [("z",)]
    await site.have(removed=["a"])
    assert not second.kept
    await site.stores.update()
    assert second.calls == ["put z", "delete z"]


async def test_a_place_that_another_entry_took_is_filled_again() -> None:
    """Deleting by place would else take the other entry's SVID away."""
    store = Store()
    site = Site(store)
    await site.have(entry("a", "disk:x"), entry("b", "disk:x"))
    await site.have(removed=["a"])
    assert store.kept["x",].spiffe_id == "spiffe://example.org/b"


@pytest.mark.parametrize(
    ("error", "calls"),
    [
        (TemporarilyUnavailable("away"), ["put x", "delete x", "delete x"]),
        (InvalidArgument("no such place"), ["put x", "delete x"]),
    ],
)
async def test_what_fails_is_tried_again_unless_it_never_can_succeed(error: Exception, calls: list[str]) -> None:
    store = Store()
    site = Site(store)
    await site.have(entry("a", "disk:x"))
    store.failing = error
    await site.have(removed=["a"])
    store.failing = None
    await site.stores.update()
    assert store.calls == calls


async def test_a_put_that_fails_is_tried_again() -> None:
    store = Store(failing=TemporarilyUnavailable("away"))
    site = Site(store)
    await site.have(entry("a", "disk:x"))
    assert not store.kept
    store.failing = None
    await site.stores.update()
    assert list(store.kept) == [("x",)]


async def test_an_entry_without_a_store_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    site = Site(Store())
    await site.have(entry("a", "cloud:x"))
    await site.have(entry("b", "disk:x", "cloud:y"))
    await site.have(removed=["a", "b"])
    assert caplog.text.count("SVIDStore not found") == 2


async def test_a_store_that_hangs_holds_up_no_other() -> None:
    stuck, good = Store("stuck", hang=True), Store()
    site = Site(stuck, good)
    running = asyncio.create_task(site.stores.run())
    site.put_into_cache([entry("a", "stuck:x"), entry("b", "disk:y")])
    await until(lambda: good.kept and stuck.calls)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_an_agent_stores_and_serves_apart(home: Home, server: FakeServer) -> None:
    store = Store()
    server.add_entry("stored", "/stored", ["disk:name:x"], store_svid=True)
    server.add_entry("served", "/served")
    home.stores = {"disk": store}
    async with home.running():
        await until(lambda: store.kept)
        (kept,) = store.kept.values()
        assert kept.spiffe_id == "spiffe://example.org/stored"
        key = load_der_private_key(kept.private_key, None).public_key()
        assert key == der.certificate(kept.chain[0]).public_key()
        assert kept.bundle == (server.authority.der,)
        server.entries["stored"].store_svid = False
        server.entries["stored"].revision_number += 1
        await until(lambda: not store.kept)
