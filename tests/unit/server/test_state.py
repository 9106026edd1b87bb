"""What a server remembers and renews by itself: nodes, roots, its own SVID, and what has expired."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from generated.spire.api.server.bundle.v1 import bundle_pb2 as api
from generated.spire.api.types import bundle_pb2
from identity.bundles import Bundle, JwtAuthority, X509Authority
from identity.selectors import Selector
from identity.spiffeid import TrustDomain
from operations import logs
from operations.errors import ConfigurationError, NotFound, Refused, TemporarilyUnavailable
from server.authority_store import DatastoreAuthorities
from server.config import load
from server.datastore.records import AttestedNode, Entry, JoinToken
from server.datastore.store import DataStore
from server.health import Health
from server.housekeeping import Housekeeping
from server.nodes import AttestedNodes
from server.run import serve
from server.trust import TrustBundles
from tests.simulators.house import BUNDLE, CONFIG, TRUST_DOMAIN, House, running
from tests.simulators.pki import Authority
from tests.simulators.spire import free_port
from transport.client import Channel
from transport.tls import client_context

AGENT = "spiffe://example.org/spire/agent/x/1"
NODE = AttestedNode(spiffe_id=AGENT, attestation_type="x", serial_number="1", expires_at=100)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[DataStore]:
    made = await DataStore.open(str(tmp_path / "datastore.sqlite3"))
    yield made
    await made.close()


async def test_a_node_is_read_once_and_never_outdated(store: DataStore) -> None:
    nodes = AttestedNodes(store)
    assert await nodes.get(AGENT) is None
    await nodes.admit(NODE)
    first = await nodes.get(AGENT)
    assert first == NODE
    assert await nodes.get(AGENT) is first or await nodes.get(AGENT) == first
    renewed = replace(NODE, new_serial_number="2", new_expires_at=200)
    await nodes.update(renewed, ("new_serial_number", "new_expires_at"))
    assert await nodes.get(AGENT) == renewed
    assert await nodes.activate(AGENT, "2") == replace(NODE, serial_number="2", expires_at=200)
    assert await nodes.get(AGENT) == replace(NODE, serial_number="2", expires_at=200)
    await nodes.ban(AGENT)
    banned = await nodes.get(AGENT)
    assert banned is not None
    assert banned.banned
    assert banned.expires_at == 200
    with pytest.raises(Refused, match="agent is banned"):
        await nodes.admit(NODE)
    await nodes.delete(AGENT)
    assert await nodes.get(AGENT) is None
    with pytest.raises(NotFound):
        await nodes.ban(AGENT)


async def test_a_read_that_a_write_overtook_is_not_remembered(store: DataStore) -> None:
    nodes = AttestedNodes(store)
    await nodes.admit(NODE)
    reading = [asyncio.create_task(nodes.get(AGENT)) for _ in range(8)]
    await nodes.ban(AGENT)
    await asyncio.gather(*reading)
    node = await nodes.get(AGENT)
    assert node is not None
    assert node.banned


async def test_another_servers_eviction_is_seen_within_the_staleness(store: DataStore) -> None:
    here, there = AttestedNodes(store), AttestedNodes(store, staleness=0.2)
    await there.admit(NODE)
    assert await there.get(AGENT) == NODE
    assert await here.evict(AGENT)
    await asyncio.sleep(0.25)
    assert await there.get(AGENT) == replace(NODE, serial_number="0")


async def test_expired_nodes_are_pruned_and_forgotten(store: DataStore) -> None:
    nodes = AttestedNodes(store, size=1)
    await nodes.admit(NODE)
    await nodes.admit(replace(NODE, spiffe_id=AGENT + "2", expires_at=10**10))
    assert await nodes.get(AGENT)
    assert await nodes.get(AGENT + "2")
    gone = await nodes.prune(1000, include_non_reattestable=True, limit=10)
    assert [node.spiffe_id for node in gone] == [AGENT]
    assert await nodes.get(AGENT) is None


async def test_roots_are_the_same_until_the_bundle_changes(store: DataStore) -> None:
    bundles = TrustBundles(store)
    assert await bundles.get(TRUST_DOMAIN) is None
    with pytest.raises(NotFound, match=r'no bundle found for trust domain "example.org"'):
        await bundles.roots(TRUST_DOMAIN)
    authorities = DatastoreAuthorities(store, TRUST_DOMAIN)
    first, second = Authority.root().der, Authority.root().der
    await authorities.append_x509_authority(first)
    known = await bundles.roots(TRUST_DOMAIN)
    assert list(known) == [first]
    await authorities.append_jwt_authority(JwtAuthority("key", b"", 10))
    assert await bundles.roots(TRUST_DOMAIN) is known, "only keys of tokens changed"
    await authorities.append_x509_authority(second)
    assert list(await bundles.roots(TRUST_DOMAIN)) == [first, second]
    bundle = await bundles.get(TRUST_DOMAIN)
    assert bundle is not None
    assert [authority.key_id for authority in bundle.jwt_authorities] == ["key"]


async def test_what_has_expired_goes(store: DataStore) -> None:
    now = int(time.time())
    entry = Entry(spiffe_id="spiffe://example.org/w", parent_id=AGENT, selectors=(Selector("a", "b"),))
    kept = await store.create_entry(entry)
    await store.create_entry(replace(entry, spiffe_id="spiffe://example.org/old", expires_at=now - 1))
    await store.create_join_token(JoinToken("old", now - 1))
    await store.create_join_token(JoinToken("new", now + 100))
    await Housekeeping(store, logs.get()).prune(now)
    assert [each.id for each in (await store.list_entries()).items] == [kept.id]
    assert await store.get_join_token("old") is None
    assert await store.get_join_token("new") is not None


async def test_health_follows_what_is_probed() -> None:
    answers: list[str | Exception | None] = ["bundle is missing", TemporarilyUnavailable("locked"), None]

    async def probe() -> str | None:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    health = Health(probe, logs.get())
    assert [await health.serving() for _ in range(3)] == [False, False, True]


async def test_the_server_renews_its_own_svid(tmp_path: Path) -> None:
    """Connections made at any time meet an SVID that has not ended."""
    async with running(tmp_path, settings='default_x509_svid_ttl = "2s"') as house:
        seen: set[bytes] = set()

        end = time.time() + 60
        while len(seen) < 3:
            assert time.time() < end
            seen.add(await server_leaf(house))
            await asyncio.sleep(0.1)


async def server_leaf(house: House) -> bytes:
    """The certificate that the server shows to a new connection; house.remote verifies it."""
    shown: list[bytes] = []
    verified = await house.remote()
    await verified.unary(BUNDLE + "GetBundle", api.GetBundleRequest(), bundle_pb2.Bundle)
    channel = Channel.tcp("127.0.0.1", house.port, lambda: client_context(None), lambda chain: shown.append(chain[0]))
    async with channel:
        await channel.unary(BUNDLE + "GetBundle", api.GetBundleRequest(), bundle_pb2.Bundle)
    return shown[0]


async def test_a_datastore_of_another_trust_domain_is_refused(tmp_path: Path) -> None:
    store = await DataStore.open(str(tmp_path / "datastore.sqlite3"))
    entry = Entry(spiffe_id="spiffe://other.org/w", parent_id="spiffe://other.org/p", selectors=(Selector("a", "b"),))
    await store.create_entry(entry)
    await store.set_bundle(Bundle(TrustDomain("other.org"), (X509Authority(b"x"),)))
    await store.close()
    path = tmp_path / "server.conf"
    path.write_text(CONFIG.format(port=free_port(), folder=tmp_path, settings="", ratelimit="", plugins=""))
    with pytest.raises(
        ConfigurationError, match=r'trust domain "other.org" .* configured trust domain of "example.org"'
    ):
        await serve(load(str(path)))
