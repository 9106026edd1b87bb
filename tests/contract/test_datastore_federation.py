"""The datastore contract for federation: bundles of other trust domains and relationships, held against all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from identity.bundles import Bundle, JwtAuthority, X509Authority
from identity.spiffeid import TrustDomain
from operations.errors import AlreadyExists, InvalidArgument, NotFound
from server.datastore.federation import FederationRelationship, Profile
from server.datastore.store import DataStore
from tests.contract.datastore_backends import BACKENDS, DURABLE, Backend, backend_of

OTHER = TrustDomain("other.org")
BUNDLE = Bundle(OTHER, (X509Authority(b"one"),), (JwtAuthority("key", b"key"),), refresh_hint=60, sequence_number=4)
CHANGED = Bundle(OTHER, (X509Authority(b"two"),), (), refresh_hint=5, sequence_number=1)
WEB = FederationRelationship(
    trust_domain=OTHER, bundle_endpoint_url="https://other.org/bundle", profile=Profile.HTTPS_WEB
)
BY_SVID = replace(WEB, profile=Profile.HTTPS_SPIFFE, endpoint_spiffe_id="spiffe://other.org/endpoint")


@pytest.fixture(params=BACKENDS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[DataStore]:
    opened = await backend_of(request, tmp_path).open()
    yield opened
    await opened.close()


async def test_an_update_of_a_bundle_changes_only_the_fields_of_its_mask(store: DataStore) -> None:
    with pytest.raises(NotFound, match="bundle not found"):
        await store.update_bundle(BUNDLE)
    await store.set_bundle(BUNDLE)
    assert await store.update_bundle(CHANGED, ()) == BUNDLE
    hinted = Bundle(OTHER, BUNDLE.x509_authorities, BUNDLE.jwt_authorities, refresh_hint=5, sequence_number=4)
    changed = await store.update_bundle(CHANGED, {"refresh_hint"})
    assert changed == hinted
    assert await store.get_bundle(OTHER) == hinted
    assert await store.update_bundle(CHANGED) == CHANGED
    assert await store.get_bundle(OTHER) == CHANGED


async def test_a_trust_domain_can_be_left_out_of_the_pages(store: DataStore) -> None:
    names = ["a.org", "b.org", "c.org", "d.org"]
    for name in names:
        await store.set_bundle(Bundle(TrustDomain(name)))
    first = await store.list_bundles(page_size=2, without=TrustDomain("b.org"))
    second = await store.list_bundles(page_size=2, page_token=first.next_token, without=TrustDomain("b.org"))
    assert [[each.trust_domain.name for each in page.items] for page in (first, second)] == [
        ["a.org", "c.org"],
        ["d.org"],
    ]
    assert second.next_token == ""
    with pytest.raises(InvalidArgument, match="could not parse token"):
        await store.list_bundles(page_size=2, page_token="no token")


async def test_a_relationship_comes_back_as_it_was_given(store: DataStore) -> None:
    assert await store.get_federation_relationship(OTHER) is None
    assert await store.create_federation_relationship(BY_SVID) == BY_SVID
    assert await store.get_federation_relationship(OTHER) == BY_SVID
    with pytest.raises(AlreadyExists, match=r"other\.org"):
        await store.create_federation_relationship(replace(WEB, bundle=BUNDLE))
    assert await store.get_bundle(OTHER) is None
    await store.delete_federation_relationship(OTHER)
    assert await store.get_federation_relationship(OTHER) is None
    with pytest.raises(NotFound, match="federation relationship not found"):
        await store.delete_federation_relationship(OTHER)


async def test_a_relationship_brings_and_shows_the_bundle_but_does_not_own_it(store: DataStore) -> None:
    heard: list[set[str]] = []
    store.subscribe(lambda changes: heard.append(changes.bundles))
    await store.create_federation_relationship(replace(WEB, bundle=BUNDLE))
    assert heard == [{"other.org"}]
    assert await store.get_bundle(OTHER) == BUNDLE
    await store.set_bundle(CHANGED)
    assert await store.get_federation_relationship(OTHER) == replace(WEB, bundle=CHANGED)
    await store.delete_bundle(OTHER)
    assert await store.get_federation_relationship(OTHER) == WEB
    await store.set_bundle(BUNDLE)
    await store.delete_federation_relationship(OTHER)
    assert await store.get_bundle(OTHER) == BUNDLE


async def test_an_update_of_a_relationship_changes_only_the_fields_of_its_mask(store: DataStore) -> None:
    elsewhere = replace(BY_SVID, bundle_endpoint_url="https://elsewhere.org", bundle=BUNDLE)
    with pytest.raises(NotFound, match="federation relationship not found"):
        await store.update_federation_relationship(elsewhere)
    assert await store.get_bundle(OTHER) is None
    await store.create_federation_relationship(WEB)
    assert await store.update_federation_relationship(elsewhere, ()) == WEB
    moved = replace(WEB, bundle_endpoint_url="https://elsewhere.org")
    changed = await store.update_federation_relationship(elsewhere, {"bundle_endpoint_url"})
    assert changed == moved
    changed = await store.update_federation_relationship(elsewhere, {"bundle_endpoint_profile"})
    assert changed == replace(elsewhere, bundle=None)
    assert await store.update_federation_relationship(elsewhere) == elsewhere
    # Without a bundle the one that is there stays.
    back = replace(WEB, bundle=BUNDLE)
    assert await store.update_federation_relationship(WEB) == back
    assert await store.get_federation_relationship(OTHER) == back


async def test_relationships_come_in_pages_oldest_first(store: DataStore) -> None:
    names = ["c.org", "a.org", "b.org"]
    for name in names:
        await store.create_federation_relationship(replace(WEB, trust_domain=TrustDomain(name)))
    await store.set_bundle(Bundle(TrustDomain("a.org")))
    found: list[str] = []
    token = ""
    while True:
        page = await store.list_federation_relationships(page_size=2, page_token=token)
        found += [each.trust_domain.name for each in page.items]
        token = page.next_token
        if not token:
            break
    assert found == names
    everything = await store.list_federation_relationships()
    assert [each.bundle is not None for each in everything.items] == [False, True, False]
    with pytest.raises(InvalidArgument, match="could not parse token"):
        await store.list_federation_relationships(page_size=2, page_token="a.org")


@pytest.fixture(params=DURABLE)
def durable(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    return backend_of(request, tmp_path)


async def test_a_relationship_is_there_after_a_restart(durable: Backend) -> None:
    for number in range(2):
        store = await durable.open()
        if not number:
            await store.create_federation_relationship(replace(BY_SVID, bundle=BUNDLE))
        assert await store.get_federation_relationship(OTHER) == replace(BY_SVID, bundle=BUNDLE)
        await store.close()
