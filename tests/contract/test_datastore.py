"""The datastore contract, held against every backend."""

from __future__ import annotations

import asyncio
import dataclasses
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from identity import tainting
from identity.bundles import Bundle, JwtAuthority, WitAuthority, X509Authority
from identity.spiffeid import TrustDomain
from operations.errors import AlreadyExists, InvalidArgument, NotFound, Refused, TemporarilyUnavailable
from server.datastore.records import (
    AttestedNode,
    ByFederatesWith,
    BySelectors,
    Changes,
    DeleteMode,
    Entry,
    EntryFilter,
    JoinToken,
    Match,
    NodeFilter,
)
from server.datastore.store import DataStore
from tests.contract.datastore_backends import AGENT, BACKENDS, Backend, backend_of, entry, selected

TRUST_DOMAIN = TrustDomain("example.org")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    return backend_of(request, tmp_path)


@pytest.fixture
async def store(backend: Backend) -> AsyncIterator[DataStore]:
    opened = await backend.open()
    yield opened
    await opened.close()


def node(name: str = "a", **changed: object) -> AttestedNode:
    made = AttestedNode(
        spiffe_id=f"spiffe://example.org/spire/agent/{name}",
        attestation_type="x509pop",
        serial_number="1",
        expires_at=1000,
    )
    return replace(made, **changed)


# Entries


async def test_an_entry_comes_back_as_it_was_given(store: DataStore) -> None:
    await store.set_bundle(Bundle(TrustDomain("other.org")))
    before = int(time.time())
    given = Entry(
        spiffe_id="spiffe://example.org/w",
        parent_id=AGENT,
        selectors=selected("unix:uid:1000 unix:gid:5 a:b"),
        x509_svid_ttl=60,
        jwt_svid_ttl=30,
        federates_with=("other.org",),
        hint="internal",
        admin=True,
        downstream=True,
        expires_at=4_000_000_000,
        dns_names=("b.example.org", "a.example.org"),
        jwt_svid_include_jti=True,
        disable_x509_svid_prefetch=True,
    )
    made = await store.create_entry(given)
    assert uuid.UUID(made.id).version == 4
    assert before <= made.created_at <= time.time()
    assert made == replace(given, id=made.id, created_at=made.created_at)
    assert await store.get_entry(made.id) == made
    assert (await store.list_entries()).items == (made,)
    assert await store.get_entries([made.id, "absent"]) == {made.id: made}


async def test_an_entry_that_is_absent_is_none(store: DataStore) -> None:
    assert await store.get_entry("absent") is None
    assert await store.get_entries([]) == {}
    assert await store.get_entries([str(number) for number in range(40_000)]) == {}


async def test_an_entry_keeps_the_id_it_was_given(store: DataStore) -> None:
    assert (await store.create_entry(entry(id="my.Entry-1_"))).id == "my.Entry-1_"
    with pytest.raises(AlreadyExists, match=r"my\.Entry-1_"):
        await store.create_entry(entry("other", id="my.Entry-1_"))


async def test_a_similar_entry_is_returned_instead_of_made(store: DataStore) -> None:
    made, existed = await store.create_or_return_entry(entry(selectors="a:1 b:2"))
    assert not existed
    assert await store.create_or_return_entry(entry(selectors="b:2 a:1", hint="x")) == (made, True)
    for different in (
        entry(selectors="a:1"),
        entry(selectors="a:1 b:2 c:3"),
        entry("other", selectors="a:1 b:2"),
        entry(parent_id=f"{AGENT}2", selectors="a:1 b:2"),
    ):
        assert (await store.create_or_return_entry(different))[1] is False
    assert await store.count_entries() == 5


async def test_a_set_has_no_duplicates(store: DataStore) -> None:
    made = await store.create_entry(replace(entry(selectors="a:1 a:1 b:2"), dns_names=("d", "d")))
    assert made.selectors == selected("a:1 b:2")
    assert made.dns_names == ("d",)
    assert await store.get_entry(made.id) == made


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (entry(selectors=""), "missing selector list"),
        (entry(id="a/b"), "entry ID contains invalid characters"),
        (entry(id="a" * 256), "entry ID too long"),
        (replace(entry(), spiffe_id=""), "missing SPIFFE ID"),
        (replace(entry(), x509_svid_ttl=-1), "X509SvidTtl is not set"),
        (replace(entry(), jwt_svid_ttl=-1), "JwtSvidTtl is not set"),
        (replace(entry(selectors="a:1 b:1"), store_svid=True), "selector types must be the same"),
        (replace(entry(), store_svid=True, disable_x509_svid_prefetch=True), "incompatible with storable"),
        (entry(federates_with=("absent.org",)), 'unable to find federated bundle "spiffe://absent.org"'),
    ],
)
async def test_an_invalid_entry_is_refused_and_nothing_is_written(store: DataStore, wrong: Entry, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        await store.create_entry(wrong)
    assert await store.count_entries() == 0


async def test_an_update_changes_only_the_fields_of_its_mask(store: DataStore) -> None:
    made = await store.create_entry(replace(entry(), dns_names=("a",), hint="old"))
    other = replace(entry("new", id=made.id, selectors="x:y"), dns_names=("b",), hint="new", jwt_svid_include_jti=True)

    assert await store.update_entry(other, ["hint"]) == replace(made, hint="new", revision_number=1)
    updated = await store.update_entry(other, ["selectors", "additional_attributes"])
    assert updated == replace(made, hint="new", selectors=selected("x:y"), jwt_svid_include_jti=True, revision_number=2)
    assert await store.get_entry(made.id) == updated

    everything = await store.update_entry(other)
    assert everything == replace(other, created_at=made.created_at, revision_number=3)
    assert await store.get_entry(made.id) == everything
    assert (await store.update_entry(other, [])).revision_number == 4


async def test_an_update_of_what_is_absent_or_invalid_changes_nothing(store: DataStore) -> None:
    with pytest.raises(NotFound, match="entry not found"):
        await store.update_entry(entry(id="absent"))
    made = await store.create_entry(entry())
    for wrong in (replace(made, selectors=()), replace(made, federates_with=("absent.org",))):
        with pytest.raises(InvalidArgument):
            await store.update_entry(wrong)
    assert await store.get_entry(made.id) == made


async def test_a_deleted_entry_is_gone_with_all_its_parts(store: DataStore) -> None:
    made = await store.create_entry(entry())
    assert await store.delete_entry(made.id) == made
    assert await store.get_entry(made.id) is None
    with pytest.raises(NotFound, match="entry not found"):
        await store.delete_entry(made.id)
    by_selector = EntryFilter(selectors=BySelectors(made.selectors, Match.ANY))
    assert await store.count_entries(by_selector) == 0


async def test_pruning_takes_the_expired_entries_only(store: DataStore) -> None:
    for name, expires_at in (("never", 0), ("past", 99), ("now", 100), ("future", 101)):
        await store.create_entry(entry(name, id=name, expires_at=expires_at))
    assert [pruned.id for pruned in await store.prune_entries(100)] == ["past"]
    assert {kept.id for kept in (await store.list_entries()).items} == {"never", "now", "future"}


async def test_filters_of_entries(store: DataStore) -> None:
    await store.create_entry(entry("a", id="a", hint="h"))
    await store.create_entry(entry("b", id="b", parent_id=f"{AGENT}2", downstream=True))
    await store.create_entry(entry("b", id="c", hint="h"))

    async def ids(wanted: EntryFilter) -> str:
        found = (await store.list_entries(wanted)).items
        assert await store.count_entries(wanted) == len(found)
        return "".join(each.id for each in found)

    assert await ids(EntryFilter()) == "abc"
    assert await ids(EntryFilter(parent_id=AGENT)) == "ac"
    assert await ids(EntryFilter(spiffe_id="spiffe://example.org/b")) == "bc"
    assert await ids(EntryFilter(spiffe_id="spiffe://example.org/b", parent_id=AGENT)) == "c"
    assert await ids(EntryFilter(hint="h")) == "ac"
    assert await ids(EntryFilter(downstream=True)) == "b"
    assert await ids(EntryFilter(downstream=False)) == "ac"


@pytest.mark.parametrize(
    ("words", "match", "expected"),
    [
        ("t:a", Match.EXACT, "a"),
        ("t:a", Match.SUBSET, "a"),
        ("t:a", Match.SUPERSET, "a ab abc"),
        ("t:a", Match.ANY, "a ab abc"),
        ("t:a t:b", Match.EXACT, "ab"),
        ("t:b t:a t:b", Match.EXACT, "ab"),
        ("t:a t:b", Match.SUBSET, "a ab b"),
        ("t:a t:b", Match.SUPERSET, "ab abc"),
        ("t:a t:b", Match.ANY, "a ab abc b"),
        ("t:z", Match.ANY, ""),
        ("t:a t:z", Match.SUPERSET, ""),
        ("t:a t:z", Match.SUBSET, "a"),
    ],
)
async def test_sets_match_alike_for_entries_and_nodes(
    store: DataStore, words: str, match: Match, expected: str
) -> None:
    for name in ("a", "ab", "abc", "b"):
        await store.set_bundle(Bundle(TrustDomain(name[-1])))
    for name in ("a", "ab", "abc", "b"):
        selectors = " ".join(f"t:{letter}" for letter in name)
        await store.create_entry(entry(name, id=name, selectors=selectors, federates_with=tuple(name)))
        await store.create_node(node(name, selectors=selected(selectors)))
    by_selectors = BySelectors(selected(words), match)
    by_federation = ByFederatesWith(tuple(word[2:] for word in words.split()), match)
    names = expected.split()

    assert [each.id for each in (await store.list_entries(EntryFilter(selectors=by_selectors))).items] == names
    assert [each.id for each in (await store.list_entries(EntryFilter(federates_with=by_federation))).items] == names
    found = (await store.list_nodes(NodeFilter(selectors=by_selectors))).items
    assert [each.spiffe_id.rpartition("/")[2] for each in found] == names
    assert await store.count_nodes(NodeFilter(selectors=by_selectors)) == len(names)


async def test_an_empty_set_of_selectors_cannot_be_listed_by(store: DataStore) -> None:
    nothing = BySelectors((), Match.EXACT)
    with pytest.raises(InvalidArgument, match="cannot list by empty selector set"):
        await store.list_entries(EntryFilter(selectors=nothing))
    with pytest.raises(InvalidArgument, match="cannot list by empty selectors set"):
        await store.list_nodes(NodeFilter(selectors=nothing))


async def test_pages_cover_everything_once(store: DataStore) -> None:
    for number in range(7):
        await store.create_entry(entry(f"w{number}", id=str(number)))
        await store.create_node(node(str(number)))
        await store.set_bundle(Bundle(TrustDomain(f"td{number}")))
    for size, lengths in ((3, [3, 3, 1]), (7, [7]), (8, [7]), (0, [7])):
        assert [len(page) for page in await entry_pages(store, size)] == lengths
    assert "".join(each for page in await entry_pages(store, 2) for each in page) == "0123456"

    first = await store.list_nodes(page_size=5)
    assert len(first.items) == 5
    rest = await store.list_nodes(page_size=5, page_token=first.next_token)
    assert (len(rest.items), rest.next_token) == (2, "")
    few = await store.list_bundles(page_size=6)
    last = await store.list_bundles(page_size=6, page_token=few.next_token)
    assert [bundle.trust_domain.name for bundle in last.items] == ["td6"]


async def entry_pages(store: DataStore, size: int) -> list[list[str]]:
    pages: list[list[str]] = []
    token = ""
    while True:
        page = await store.list_entries(page_size=size, page_token=token)
        pages.append([each.id for each in page.items])
        token = page.next_token
        if not token:
            return pages


async def test_deleting_the_last_entry_of_a_page_does_not_lose_the_place(store: DataStore) -> None:
    for number in range(4):
        await store.create_entry(entry(f"w{number}", id=str(number)))
    page = await store.list_entries(page_size=2)
    await store.delete_entry("1")
    await store.delete_entry("3")
    await store.create_entry(entry("late", id="late"))
    rest = await store.list_entries(page_size=5, page_token=page.next_token)
    assert [each.id for each in rest.items] == ["2", "late"]


@pytest.mark.parametrize("token", ["x", "-1", "1.5", "²", "99999999999999999999"])
async def test_a_token_that_no_page_gave_is_refused(store: DataStore, token: str) -> None:
    with pytest.raises(InvalidArgument, match="could not parse token"):
        await store.list_entries(page_size=1, page_token=token)
    with pytest.raises(InvalidArgument, match="could not parse token"):
        await store.list_nodes(page_size=1, page_token=token)


# Nodes


async def test_a_node_comes_back_as_it_was_given(store: DataStore) -> None:
    given = node(
        new_serial_number="2", new_expires_at=2000, can_reattest=True, agent_version="1.16", selectors=selected("a:b")
    )
    assert await store.create_node(given) == given
    assert await store.get_node(given.spiffe_id) == given
    assert await store.get_node("spiffe://example.org/absent") is None
    assert (await store.list_nodes()).items == (replace(given, selectors=()),)
    assert (await store.list_nodes(with_selectors=True)).items == (given,)
    with pytest.raises(AlreadyExists, match=given.spiffe_id):
        await store.create_node(given)


async def test_an_attested_node_is_admitted_unless_it_is_banned(store: DataStore) -> None:
    first = node(selectors=selected("a:b"))
    await store.admit_node(first)
    assert await store.get_node(first.spiffe_id) == first
    await store.update_node(
        replace(first, new_serial_number="8", agent_version="v"), ["new_serial_number", "agent_version"]
    )
    again = replace(first, serial_number="7", expires_at=77, can_reattest=True, selectors=selected("c:d"))
    await store.admit_node(again)
    assert await store.get_node(first.spiffe_id) == replace(again, agent_version="v")
    await store.update_node(replace(first, serial_number=""), ["serial_number"])
    with pytest.raises(Refused, match="agent is banned"):
        await store.admit_node(first)
    kept = await store.get_node(first.spiffe_id)
    assert kept == replace(again, serial_number="", agent_version="v")


async def test_only_the_newest_certificate_of_a_node_that_is_not_banned_becomes_active(store: DataStore) -> None:
    made = await store.create_node(node(new_serial_number="2", new_expires_at=2000))
    assert await store.activate_node(made.spiffe_id, "1") == made
    active = replace(made, serial_number="2", expires_at=2000, new_serial_number="", new_expires_at=0)
    assert await store.activate_node(made.spiffe_id, "2") == active
    assert await store.activate_node(made.spiffe_id, "2") == active
    banned = await store.update_node(
        replace(active, serial_number="", new_serial_number="3"), ["serial_number", "new_serial_number"]
    )
    assert await store.activate_node(made.spiffe_id, "3") == banned
    assert await store.activate_node("spiffe://example.org/absent", "3") is None


async def test_an_update_of_a_node_changes_only_the_fields_of_its_mask(store: DataStore) -> None:
    made = await store.create_node(node())
    new = replace(made, serial_number="", expires_at=5, new_serial_number="9", new_expires_at=6, agent_version="v")
    banned = await store.update_node(new, ["serial_number", "new_serial_number"])
    assert banned == replace(made, serial_number="", new_serial_number="9")
    assert banned.banned
    assert await store.get_node(made.spiffe_id) == banned
    assert await store.update_node(new) == new
    with pytest.raises(NotFound, match="agent not found"):
        await store.update_node(node("absent"))


async def test_filters_of_nodes(store: DataStore) -> None:
    await store.create_node(node("a", expires_at=10))
    await store.create_node(node("b", expires_at=20, serial_number=""))
    await store.create_node(node("c", expires_at=30, attestation_type="join_token", can_reattest=True))

    async def names(wanted: NodeFilter) -> str:
        found = (await store.list_nodes(wanted)).items
        assert await store.count_nodes(wanted) == len(found)
        return "".join(each.spiffe_id[-1] for each in found)

    assert await names(NodeFilter()) == "abc"
    assert await names(NodeFilter(banned=True)) == "b"
    assert await names(NodeFilter(banned=False)) == "ac"
    assert await names(NodeFilter(can_reattest=True)) == "c"
    assert await names(NodeFilter(can_reattest=False)) == "ab"
    assert await names(NodeFilter(attestation_type="join_token")) == "c"
    assert await names(NodeFilter(expires_before=20)) == "a"
    assert await names(NodeFilter(valid_at=20)) == "bc"
    assert await names(NodeFilter(spiffe_ids=(node("a").spiffe_id, node("b").spiffe_id), banned=False)) == "a"


async def test_node_selectors_are_replaced_and_go_with_the_node(store: DataStore) -> None:
    spiffe_id = node().spiffe_id
    await store.set_node_selectors(spiffe_id, selected("a:1 b:2 a:1"))
    await store.create_node(node())
    assert await store.get_node_selectors(spiffe_id) == selected("a:1 b:2")
    await store.set_node_selectors(spiffe_id, selected("c:3"))
    assert (await store.delete_node(spiffe_id)).selectors == selected("c:3")
    assert await store.get_node_selectors(spiffe_id) == ()
    with pytest.raises(NotFound, match="agent not found"):
        await store.delete_node(spiffe_id)


async def test_a_join_token_node_takes_its_alias_along(store: DataStore) -> None:
    agent = node("join_token/t", attestation_type="join_token")
    await store.create_node(agent)
    alias = await store.create_entry(entry(parent_id=agent.spiffe_id, selectors=f"spiffe_id:{agent.spiffe_id}"))
    users = await store.create_entry(entry("u", parent_id=agent.spiffe_id))
    more = await store.create_entry(entry("m", parent_id=agent.spiffe_id, selectors=f"spiffe_id:{agent.spiffe_id} a:b"))
    await store.delete_node(agent.spiffe_id)
    assert await store.get_entries([alias.id, users.id, more.id]) == {users.id: users, more.id: more}


async def test_pruning_nodes_leaves_the_banned_and_those_that_cannot_come_back(store: DataStore) -> None:
    await store.create_node(node("a", expires_at=10, can_reattest=True))
    await store.create_node(node("b", expires_at=10))
    await store.create_node(node("c", expires_at=10, serial_number="", can_reattest=True))
    await store.create_node(node("d", expires_at=20, can_reattest=True))
    assert [pruned.spiffe_id[-1] for pruned in await store.prune_nodes(20)] == ["a"]
    assert [pruned.spiffe_id[-1] for pruned in await store.prune_nodes(20, include_non_reattestable=True)] == ["b"]
    assert await store.count_nodes() == 2


# Join tokens


async def test_a_join_token_can_be_taken_once(store: DataStore) -> None:
    await store.create_join_token(JoinToken("t", 100))
    assert await store.get_join_token("t") == JoinToken("t", 100)
    with pytest.raises(AlreadyExists):
        await store.create_join_token(JoinToken("t", 100))
    taken = await asyncio.gather(*(store.take_join_token("t") for _ in range(20)))
    assert [token for token in taken if token] == [JoinToken("t", 100)]
    assert await store.get_join_token("t") is None
    with pytest.raises(NotFound):
        await store.delete_join_token("t")


async def test_pruning_takes_the_expired_join_tokens_only(store: DataStore) -> None:
    for name, expires_at in (("past", 99), ("now", 100)):
        await store.create_join_token(JoinToken(name, expires_at))
    assert await store.prune_join_tokens(100) == 1
    assert await store.get_join_token("now") is not None
    with pytest.raises(InvalidArgument, match="token and expiry are required"):
        await store.create_join_token(JoinToken("", 100))


# Bundles


ONE = X509Authority(b"one")
TWO = X509Authority(b"two")
KEY = JwtAuthority("k", b"key", 5)


async def test_appending_unites_and_counts_only_what_changed(store: DataStore) -> None:
    assert await store.get_bundle(TRUST_DOMAIN) is None
    first = await store.append_bundle(Bundle(TRUST_DOMAIN, (ONE,), refresh_hint=7))
    assert first == Bundle(TRUST_DOMAIN, (ONE,), refresh_hint=7)
    assert await store.append_bundle(Bundle(TRUST_DOMAIN, (ONE,))) == first
    second = await store.append_bundle(Bundle(TRUST_DOMAIN, (TWO, ONE), (KEY,)))
    assert second == Bundle(TRUST_DOMAIN, (ONE, TWO), (KEY,), refresh_hint=7, sequence_number=1)
    assert await store.get_bundle(TRUST_DOMAIN) == second


async def test_a_key_that_is_appended_again_has_the_later_end(store: DataStore) -> None:
    tainted = dataclasses.replace(KEY, tainted=True)
    await store.set_bundle(Bundle(TRUST_DOMAIN, (), (tainted,)))
    ends: list[int] = []
    for appended in (KEY, JwtAuthority("k", b"key", 9), JwtAuthority("k", b"key", 7), JwtAuthority("k", b"other", 11)):
        bundle = await store.append_bundle(Bundle(TRUST_DOMAIN, (), (appended,)))
        [key] = bundle.jwt_authorities
        assert (key.public_key, key.tainted) == (b"key", True)
        ends.append(key.expires_at)
    assert ends == [5, 9, 9, 9]


async def test_a_bundle_is_replaced_only_where_it_is_the_one_that_was_known(store: DataStore) -> None:
    first, second = Bundle(TRUST_DOMAIN, (ONE,)), Bundle(TRUST_DOMAIN, (TWO,), sequence_number=3)
    assert not await store.replace_bundle(first, second)
    assert await store.replace_bundle(None, first)
    assert not await store.replace_bundle(None, second)
    assert await store.replace_bundle(first, second)
    assert await store.get_bundle(TRUST_DOMAIN) == second


async def test_a_tainted_authority_stays_tainted_when_appended_again(store: DataStore) -> None:
    tainted = Bundle(TRUST_DOMAIN, (dataclasses.replace(ONE, tainted=True),), (dataclasses.replace(KEY, tainted=True),))
    await store.set_bundle(tainted)
    assert await store.append_bundle(Bundle(TRUST_DOMAIN, (ONE,), (KEY,))) == tainted


async def test_a_bundle_is_created_once_set_and_edited(store: DataStore) -> None:
    bundle = Bundle(TRUST_DOMAIN, (ONE,), sequence_number=4)
    await store.create_bundle(bundle)
    with pytest.raises(AlreadyExists, match="bundle already exists"):
        await store.create_bundle(bundle)
    edited = await store.edit_bundle(TRUST_DOMAIN, lambda old: dataclasses.replace(old, jwt_authorities=(KEY,)))
    assert edited == dataclasses.replace(bundle, jwt_authorities=(KEY,), sequence_number=5)
    assert await store.edit_bundle(TRUST_DOMAIN, lambda old: old) == edited
    assert await store.set_bundle(bundle) == bundle
    assert (await store.list_bundles()).items == (bundle,)
    assert await store.count_bundles() == 1


async def test_wit_authorities_are_kept_beside_the_others(store: DataStore) -> None:
    first, second = (WitAuthority(name, KEY.public_key, expires_at) for name, expires_at in (("a", 10), ("b", 20)))
    key = JwtAuthority("j", b"key")
    await store.append_bundle(Bundle(TRUST_DOMAIN, (), (key,)))
    await store.append_bundle(Bundle(TRUST_DOMAIN, wit_authorities=(first,)))
    both = await store.append_bundle(Bundle(TRUST_DOMAIN, wit_authorities=(first, second)))
    assert both == Bundle(TRUST_DOMAIN, (), (key,), sequence_number=2, wit_authorities=(first, second))
    tainted = await store.edit_bundle(TRUST_DOMAIN, lambda old: tainting.taint_wit(old, "a"))
    assert [each.tainted for each in tainted.wit_authorities] == [True, False]
    fields = await store.update_bundle(Bundle(TRUST_DOMAIN, wit_authorities=(second,)), {"wit_authorities"})
    assert (fields.wit_authorities, fields.jwt_authorities) == ((second,), (key,))
    # Where the feature is turned off again the last one goes too, and the rest can be pruned on.
    await store.prune_bundle(TRUST_DOMAIN, 20)
    assert await store.get_bundle(TRUST_DOMAIN) == dataclasses.replace(fields, wit_authorities=(), sequence_number=4)


async def test_an_edit_that_raises_changes_nothing(store: DataStore) -> None:
    def refuse(_: Bundle) -> Bundle:
        raise Refused("no")

    await store.set_bundle(Bundle(TRUST_DOMAIN, (ONE,)))
    with pytest.raises(Refused, match="no"):
        await store.edit_bundle(TRUST_DOMAIN, refuse)
    with pytest.raises(NotFound, match="bundle not found"):
        await store.edit_bundle(TrustDomain("absent"), lambda old: old)
    assert await store.get_bundle(TRUST_DOMAIN) == Bundle(TRUST_DOMAIN, (ONE,))


async def test_a_bundle_that_entries_federate_with(store: DataStore) -> None:
    for name in ("x.org", "y.org"):
        await store.set_bundle(Bundle(TrustDomain(name)))
    made = await store.create_entry(entry(federates_with=("x.org", "y.org")))
    with pytest.raises(Refused, match="cannot delete bundle; federated with 1 registration entries"):
        await store.delete_bundle(TrustDomain("x.org"))
    await store.delete_bundle(TrustDomain("x.org"), DeleteMode.DISSOCIATE)
    assert await store.get_entry(made.id) == replace(made, federates_with=("y.org",), revision_number=1)
    await store.delete_bundle(TrustDomain("y.org"), DeleteMode.DELETE)
    assert await store.count_entries() == 0
    with pytest.raises(NotFound, match="bundle not found"):
        await store.delete_bundle(TrustDomain("y.org"))


# CA journals, events, threads


async def test_each_server_has_its_journal(store: DataStore) -> None:
    assert await store.get_ca_journal() is None
    await store.set_ca_journal(b"1")
    await store.set_ca_journal(b"2")
    await store.set_ca_journal(b"other", "server-b")
    assert await store.get_ca_journal() == b"2"
    assert await store.get_ca_journal("server-b") == b"other"
    await store.delete_ca_journal()
    assert await store.get_ca_journal() is None


async def test_subscribers_hear_of_a_change_before_its_writer_goes_on(store: DataStore) -> None:
    heard: list[Changes] = []
    cancel = store.subscribe(heard.append)
    made = await store.create_entry(entry())
    assert heard.pop().entries == {made.id: made}
    updated = await store.update_entry(replace(made, hint="h"), ["hint"])
    assert heard.pop().entries == {made.id: updated}
    await store.create_node(node(selectors=selected("a:b")))
    assert heard.pop().node_selectors == {node().spiffe_id: selected("a:b")}
    await store.delete_node(node().spiffe_id)
    assert heard.pop().node_selectors == {node().spiffe_id: ()}
    await store.append_bundle(Bundle(TRUST_DOMAIN))
    assert heard.pop().bundles == {"example.org"}
    await store.delete_entry(made.id)
    assert heard.pop().entries == {made.id: None}
    for fails in (store.delete_entry("absent"), store.create_entry(entry(selectors=""))):
        with pytest.raises((NotFound, InvalidArgument)):
            await fails
    await store.create_or_return_entry(entry())
    heard.clear()
    await store.create_or_return_entry(entry())
    assert not heard
    cancel()
    await store.create_entry(entry("late"))
    assert not heard


async def test_one_failure_among_many_writes_harms_no_other(store: DataStore) -> None:
    results = await asyncio.gather(
        *(store.create_entry(entry(f"w{n}", selectors="" if n % 3 == 0 else "a:b")) for n in range(60)),
        return_exceptions=True,
    )
    assert [isinstance(result, InvalidArgument) for result in results] == [n % 3 == 0 for n in range(60)]
    assert await store.count_entries() == 40


async def test_writes_keep_the_order_they_were_asked_in(store: DataStore) -> None:
    made = await store.create_entry(entry())
    writes = [store.update_entry(replace(made, hint=str(n)), ["hint"]) for n in range(50)]
    assert [each.revision_number for each in await asyncio.gather(*writes)] == list(range(1, 51))
    last = await store.get_entry(made.id)
    assert last is not None
    assert last.hint == "49"


async def test_a_closed_store_says_so_and_finishes_what_was_asked(backend: Backend) -> None:
    store = await backend.open()
    writes = [asyncio.create_task(store.create_entry(entry(f"w{n}"))) for n in range(30)]
    await asyncio.sleep(0)
    await store.close()
    await store.close()
    assert len({made.id for made in await asyncio.gather(*writes)}) == 30
    with pytest.raises(TemporarilyUnavailable, match="closed"):
        await store.count_entries()
