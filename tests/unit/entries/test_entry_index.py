"""The entry index against a computation that is plainly right, over the commits of a real store."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from generated.spire.api.types import entry_pb2
from identity.selectors import Selector
from identity.spiffeid import TrustDomain
from server.datastore.convert import entry_to_proto
from server.datastore.records import AttestedNode, Changes, Entry
from server.datastore.store import DataStore
from server.entries import EntryIndex

TRUST_DOMAIN = TrustDomain("example.org")
SERVER = "spiffe://example.org/spire/server"
AGENTS = [f"spiffe://example.org/spire/agent/{name}" for name in "ab"]
WORKLOADS = [f"spiffe://example.org/{name}" for name in ("group", "v", "w", "x")]
SELECTORS = [Selector("t", letter) for letter in "123"]
NOW = 1000


def naive(entries: Mapping[str, Entry], node_selectors: Mapping[str, Sequence[Selector]], agent_id: str) -> set[str]:
    """The ids of the entries an agent may have, by going round until nothing is added."""
    living = [entry for entry in entries.values() if not entry.expires_at or entry.expires_at > NOW]
    mine = set(node_selectors.get(agent_id, ()))
    parents = {agent_id}
    parents |= {entry.spiffe_id for entry in living if entry.parent_id == SERVER and mine.issuperset(entry.selectors)}
    found: set[str] = set()
    while True:
        more = {entry.id for entry in living if entry.parent_id in parents and entry.parent_id != SERVER} - found
        if not more:
            return found
        found |= more
        parents |= {entries[entry_id].spiffe_id for entry_id in more}


def expect(index: EntryIndex, entries: Mapping[str, Entry], node_selectors: Mapping[str, Sequence[Selector]]) -> None:
    for agent_id in AGENTS:
        expected = naive(entries, node_selectors, agent_id)
        authorized = index.authorized_entries(agent_id)
        assert sorted(each.record.id for each in authorized) == sorted(expected)
        assert {entry_id for entry_id in entries if index.lookup(agent_id, entry_id) is not None} == expected
        for each in authorized:
            assert each.record == entries[each.record.id]
            assert each.revision == each.record.revision_number
            assert entry_pb2.Entry.FromString(each.proto_bytes) == entry_to_proto(each.record)
            assert index.lookup(agent_id, each.record.id) is each


@dataclass
class Model:
    entries: dict[str, Entry] = field(default_factory=dict[str, Entry])
    node_selectors: dict[str, tuple[Selector, ...]] = field(default_factory=dict[str, tuple[Selector, ...]])


def node_change(agent_id: str, selectors: list[Selector]) -> Changes:
    return Changes(node_selectors={agent_id: tuple(selectors)})


some_selectors = st.lists(st.sampled_from(SELECTORS), min_size=1, max_size=2, unique=True).map(tuple)
some_entries = st.builds(
    Entry,
    id=st.sampled_from([f"e{number}" for number in range(8)]),
    spiffe_id=st.sampled_from(WORKLOADS),
    parent_id=st.sampled_from([SERVER, *AGENTS, *WORKLOADS]),
    selectors=some_selectors,
    expires_at=st.sampled_from([0, 0, 0, NOW, NOW + 1]),
)
some_changes = st.lists(
    st.one_of(
        some_entries.map(lambda entry: Changes(entries={entry.id: entry})),
        st.sampled_from([f"e{number}" for number in range(8)]).map(lambda id: Changes(entries={id: None})),
        st.builds(
            node_change,
            st.sampled_from(AGENTS),
            st.lists(st.sampled_from(SELECTORS), max_size=3, unique=True),
        ),
    ),
    max_size=30,
)


@settings(max_examples=150, deadline=None)
@given(some_changes)
def test_the_index_agrees_with_the_plain_computation(changes: list[Changes]) -> None:
    model = Model()
    index = EntryIndex(TRUST_DOMAIN, now=lambda: NOW)
    for change in changes:
        index.apply(change)
        for entry_id, entry in change.entries.items():
            model.entries.pop(entry_id, None)
            if entry is not None:
                model.entries[entry_id] = entry
        model.node_selectors.update(change.node_selectors)
        expect(index, model.entries, model.node_selectors)


def entry(name: str, parent_id: str, *selectors: Selector, expires_at: int = 0) -> Entry:
    return Entry(
        id=name,
        spiffe_id=f"spiffe://example.org/{name}",
        parent_id=parent_id,
        selectors=selectors or (Selector("unix", "uid:1"),),
        expires_at=expires_at,
    )


def test_two_aliases_of_one_spiffe_id_bring_an_entry_once() -> None:
    aliases = [replace(entry("group", SERVER, SELECTORS[0]), id=name) for name in ("one", "two")]
    index = EntryIndex(TRUST_DOMAIN, now=lambda: NOW)
    below = entry("below", aliases[0].spiffe_id)
    index.apply(Changes({each.id: each for each in (*aliases, below)}, {AGENTS[0]: (SELECTORS[0],)}))
    assert [each.record.id for each in index.authorized_entries(AGENTS[0])] == ["below"]


async def test_the_index_follows_the_store() -> None:
    store = await DataStore.open(":memory:")
    await store.create_entry(entry("early", AGENTS[0]))
    await store.set_node_selectors(AGENTS[0], SELECTORS[:2])
    index = await EntryIndex.follow(store, TRUST_DOMAIN)

    def ids(agent_id: str = AGENTS[0]) -> list[str]:
        return sorted(each.record.id for each in index.authorized_entries(agent_id))

    assert ids() == ["early"]
    await store.create_entry(entry("alias", SERVER, *SELECTORS[:2]))
    below = await store.create_entry(entry("below", "spiffe://example.org/alias"))
    deeper = await store.create_entry(entry("deeper", below.spiffe_id))
    assert ids() == ["below", "deeper", "early"]
    assert ids(AGENTS[1]) == []

    await store.set_node_selectors(AGENTS[0], SELECTORS[:1])
    assert ids() == ["early"]
    await store.create_node(
        AttestedNode(
            spiffe_id=AGENTS[1], attestation_type="t", serial_number="1", expires_at=1, selectors=tuple(SELECTORS)
        )
    )
    assert ids(AGENTS[1]) == ["below", "deeper"]
    await store.delete_node(AGENTS[1])
    assert ids(AGENTS[1]) == []

    await store.update_entry(replace(deeper, parent_id=AGENTS[1]), ["parent_id"])
    assert ids(AGENTS[1]) == ["deeper"]
    [moved] = index.authorized_entries(AGENTS[1])
    assert (moved.revision, index.get("deeper")) == (1, moved)
    await store.delete_entry("early")
    assert ids() == []
    await store.close()


async def test_what_is_written_while_the_index_is_filled_is_not_missed() -> None:
    store = await DataStore.open(":memory:")
    writes = [asyncio.create_task(store.create_entry(entry(f"a{n}", AGENTS[0]))) for n in range(20)]
    following = asyncio.create_task(EntryIndex.follow(store, TRUST_DOMAIN))
    await asyncio.sleep(0)
    writes += [asyncio.create_task(store.create_entry(entry(f"b{n}", AGENTS[0]))) for n in range(20)]
    index = await following
    await asyncio.gather(*writes)
    assert len(index.authorized_entries(AGENTS[0])) == 40
    await store.close()


def test_an_entry_expires_without_anybody_telling() -> None:
    now = NOW
    index = EntryIndex(TRUST_DOMAIN, now=lambda: now)
    short = entry("short", AGENTS[0], expires_at=NOW + 1)
    index.apply(Changes(entries={"short": short, "child": entry("child", short.spiffe_id)}))
    assert len(index.authorized_entries(AGENTS[0])) == 2
    now = NOW + 1
    assert index.authorized_entries(AGENTS[0]) == []
    assert index.lookup(AGENTS[0], "child") is None
    assert index.lookup(AGENTS[0], "absent") is None


def test_an_entry_as_a_message_says_everything() -> None:
    full = Entry(
        id="e",
        spiffe_id="spiffe://example.org/w",
        parent_id="spiffe://example.org/spire/agent/a",
        selectors=(Selector("a", "b:c"), Selector("d", "e")),
        x509_svid_ttl=1,
        jwt_svid_ttl=2,
        federates_with=("other.org",),
        hint="h",
        admin=True,
        downstream=True,
        expires_at=3,
        dns_names=("b", "a"),
        revision_number=4,
        store_svid=True,
        created_at=5,
        jwt_svid_include_jti=True,
    )
    message = entry_to_proto(full)
    assert (message.spiffe_id.trust_domain, message.spiffe_id.path) == ("example.org", "/w")
    assert (message.parent_id.trust_domain, message.parent_id.path) == ("example.org", "/spire/agent/a")
    assert [(each.type, each.value) for each in message.selectors] == [("a", "b:c"), ("d", "e")]
    assert {descriptor.name for descriptor, _ in message.ListFields()} == {
        descriptor.name for descriptor in entry_pb2.Entry.DESCRIPTOR.fields
    }
    assert message.additional_attributes.jwt_svid_include_jti
    assert not entry_to_proto(replace(full, jwt_svid_include_jti=False)).HasField("additional_attributes")
