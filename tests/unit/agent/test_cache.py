from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace

from agent.cache import Subscription, X509Cache
from agent.entries import Entry
from agent.workload_update import WorkloadUpdate, X509Svid
from generated.spiffe.workload import workload_pb2
from identity.bundles import Bundle, X509Authority
from identity.selectors import Selector
from identity.spiffeid import TrustDomain

OWN = Bundle(TrustDomain("example.org"), (X509Authority(b"root"),))
OTHER = Bundle(TrustDomain("other.org"), (X509Authority(b"other root"),))


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def selectors(*texts: str) -> frozenset[Selector]:
    return frozenset(Selector.parse(f"unix:{each}") for each in texts)


def entry(
    entry_id: str,
    *texts: str,
    hint: str = "",
    revision: int = 0,
    federates_with: tuple[str, ...] = (),
    prefetch: bool = True,
) -> Entry:
    return Entry(
        entry_id,
        f"spiffe://example.org/{entry_id}",
        selectors(*(texts or ("uid:1",))),
        hint=hint,
        revision=revision,
        federates_with=federates_with,
        prefetch=prefetch,
    )


def svid(name: str = "svid", expires_at: float = 5000, rotate_at: float = 3000) -> X509Svid:
    return X509Svid("", (name.encode(),), b"key", expires_at, rotate_at)


def issue(made: X509Cache, svids: Mapping[str, X509Svid]) -> None:
    """Have SVIDs of the ids that `entry` gives arrive."""
    made.store({each: replace(given, spiffe_id=f"spiffe://example.org/{each}") for each, given in svids.items()})


def cache(*entries: Entry, size: int = 0, clock: Clock | None = None) -> X509Cache:
    made = X509Cache(OWN, size=size, clock=clock or Clock())
    made.set_entries(entries, ())
    return made


def ids(entries: Iterable[Entry]) -> list[str]:
    return [each.id for each in entries]


async def take(subscription: Subscription) -> WorkloadUpdate:
    async with asyncio.timeout(30):
        return await anext(subscription)


async def nothing_comes(subscription: Subscription) -> bool:
    waiting = asyncio.ensure_future(anext(subscription))
    for _ in range(5):
        await asyncio.sleep(0)
    came = waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    return not came


def test_entries_match_by_subset_and_come_sorted() -> None:
    made = cache(entry("c", "uid:1"), entry("a", "uid:1", "gid:1"), entry("b", "uid:2"), entry("d", "gid:1"))
    assert ids(made.matching(selectors("uid:1", "gid:1", "path:/x"))) == ["a", "c", "d"]
    assert ids(made.matching(selectors("uid:1"))) == ["c"]
    assert ids(made.matching(selectors())) == []


def test_a_removed_or_changed_entry_matches_no_more() -> None:
    made = cache(entry("a"), entry("b"))
    made.set_entries([entry("a", "uid:2", revision=1)], ["b"])
    assert ids(made.matching(selectors("uid:1"))) == []
    assert ids(made.matching(selectors("uid:2"))) == ["a"]
    assert made.entry_count == 1


def test_everything_new_is_due_and_then_at_its_rotation() -> None:
    clock = Clock()
    made = cache(entry("a"), entry("b"), clock=clock)
    assert sorted(ids(made.take_due())) == ["a", "b"]
    issue(made, {"a": svid(rotate_at=2000), "b": svid(rotate_at=3000)})
    assert made.take_due() == []
    assert made.next_due() == 2000
    clock.now = 2500
    assert ids(made.take_due()) == ["a"]
    assert ids(made.take_due()) == ["a"], "due until it is renewed"
    issue(made, {"a": svid(rotate_at=4000)})
    assert made.next_due() == 3000


def test_a_changed_entry_is_due_and_served_until_renewed() -> None:
    made = cache(entry("a"))
    issue(made, {"a": svid("old")})
    made.set_entries([entry("a", revision=1)], ())
    assert ids(made.take_due()) == ["a"]
    assert [each.svid.chain for each in made.peek(selectors("uid:1")).identities] == [(b"old",)]


def test_an_entry_that_changes_while_its_svid_is_under_way_stays_due() -> None:
    made = cache(entry("a"), entry("b"), entry("c"))
    made.take_due()
    made.set_entries([entry("a", revision=1)], ["b"])
    made.set_entries([entry("b", revision=2)], ())
    issue(made, {each: svid("old") for each in "abc"})
    assert sorted(made.svids()) == ["a", "b", "c"]
    assert sorted(ids(made.take_due())) == ["a", "b"]
    issue(made, {each: svid("new") for each in "ab"})
    assert made.take_due() == []


def test_what_is_under_way_when_an_authority_is_tainted_is_renewed_once_more() -> None:
    made = cache(entry("a"))
    made.take_due()
    made.renew_now([])
    issue(made, {"a": svid()})
    assert ids(made.take_due()) == ["a"]
    issue(made, {"a": svid()})
    assert made.take_due() == []


def test_a_refusal_of_what_has_changed_meanwhile_puts_nothing_off() -> None:
    made = cache(entry("a"), entry("b"))
    made.take_due()
    made.set_entries([entry("a", revision=1)], ())
    made.retry("ab", 1e12)
    assert ids(made.take_due()) == ["a"]
    made.retry("a", 1e12)
    assert made.take_due() == []


async def test_nobody_is_given_the_svid_of_an_id_that_the_entry_had_before() -> None:
    made = cache(entry("a"))
    issue(made, {"a": svid("old")})
    with made.subscribe(selectors("uid:1")) as subscription:
        await take(subscription)
        made.take_due()
        renamed = replace(entry("a", revision=1), spiffe_id="spiffe://example.org/renamed")
        made.set_entries([renamed], ())
        assert made.peek(selectors("uid:1")).identities == []
        assert await nothing_comes(subscription)
        issue(made, {"a": svid("for the old id")})
        assert made.peek(selectors("uid:1")).identities == []
        made.store({"a": replace(svid("new"), spiffe_id=renamed.spiffe_id)})
        assert (await take(subscription)).identities[0].svid.chain == (b"new",)


def test_a_refused_entry_waits_for_its_retry() -> None:
    clock = Clock()
    made = cache(entry("a"), clock=clock)
    made.retry(["a", "gone"], clock.now + 5)
    assert made.take_due() == []
    clock.now += 5
    assert ids(made.take_due()) == ["a"]


def test_no_entry_is_due_twice() -> None:
    made = cache(entry("a"))
    made.retry(["a"], 5)
    made.retry(["a"], 0)
    assert ids(made.take_due()) == ["a"]


def test_what_streams_wait_for_comes_first_and_batches_are_limited() -> None:
    made = cache(*(entry(f"{number:03}", f"uid:{number}") for number in range(20)))
    with made.subscribe(selectors("uid:17")):
        assert ids(made.take_due(5))[0] == "017"
        assert len(made.take_due(5)) == 5


def test_the_soonest_to_expire_comes_first() -> None:
    clock = Clock()
    made = cache(entry("a"), entry("b"), clock=clock)
    issue(made, {"a": svid(expires_at=9000, rotate_at=1500), "b": svid(expires_at=8000, rotate_at=1600)})
    clock.now = 2000
    assert ids(made.take_due()) == ["b", "a"]


async def test_a_stream_waits_for_its_first_svids() -> None:
    made = cache(entry("a"), entry("b"))
    with made.subscribe(selectors("uid:1")) as subscription:
        first = asyncio.ensure_future(anext(subscription))
        issue(made, {"a": svid()})
        await asyncio.sleep(0)
        assert not first.done()
        issue(made, {"b": svid()})
        assert [each.entry.id for each in (await first).identities] == ["a", "b"]


async def test_a_stream_without_entries_is_told_at_once() -> None:
    with cache(entry("a", "uid:2")).subscribe(selectors("uid:1")) as subscription:
        assert (await take(subscription)).identities == []


async def test_a_stream_gets_only_the_latest() -> None:
    made = cache(entry("a"))
    issue(made, {"a": svid("1")})
    with made.subscribe(selectors("uid:1")) as subscription:
        await anext(subscription)
        for number in range(2, 6):
            issue(made, {"a": svid(str(number))})
        assert (await anext(subscription)).identities[0].svid.chain == (b"5",)
        assert await nothing_comes(subscription)


async def test_streams_of_the_same_selectors_share_one_update() -> None:
    made = cache(entry("a"))
    issue(made, {"a": svid()})
    with made.subscribe(selectors("uid:1")) as first, made.subscribe(selectors("uid:1")) as second:
        assert await take(first) is await take(second)


async def test_a_change_reaches_only_the_streams_it_concerns() -> None:
    made = cache(entry("a", "uid:1"), entry("b", "uid:2"))
    issue(made, {"a": svid(), "b": svid()})
    with made.subscribe(selectors("uid:1")) as first, made.subscribe(selectors("uid:2")) as second:
        await take(first)
        await take(second)
        issue(made, {"a": svid("new")})
        assert await nothing_comes(second)
        assert (await take(first)).identities[0].svid.chain == (b"new",)


async def test_a_stream_hears_that_its_entry_is_gone() -> None:
    made = cache(entry("a"))
    issue(made, {"a": svid()})
    with made.subscribe(selectors("uid:1")) as subscription:
        await anext(subscription)
        made.set_entries((), ["a"])
        assert (await anext(subscription)).identities == []


async def test_a_stream_is_not_turned_away_while_its_svids_are_renewed_too_late() -> None:
    clock = Clock()
    made = cache(entry("a"), clock=clock)
    issue(made, {"a": svid("old", expires_at=2000)})
    with made.subscribe(selectors("uid:1")) as subscription:
        await anext(subscription)
        clock.now = 2500
        made.set_bundles({"example.org": Bundle(OWN.trust_domain, (X509Authority(b"new root"),))})
        waiting = asyncio.ensure_future(anext(subscription))
        await asyncio.sleep(0)
        assert not waiting.done()
        issue(made, {"a": svid("new", expires_at=9000)})
        assert (await waiting).identities[0].svid.chain == (b"new",)


async def test_an_expired_svid_is_not_served_from_the_cache() -> None:
    clock = Clock()
    made = cache(entry("a"), clock=clock)
    issue(made, {"a": svid(expires_at=2000)})
    assert made.peek(selectors("uid:1")).complete
    clock.now = 2000
    with made.subscribe(selectors("uid:1")) as subscription:
        assert await nothing_comes(subscription)
    assert not made.peek(selectors("uid:1")).complete


async def test_bundles_of_federated_trust_domains() -> None:
    made = cache(entry("a", federates_with=("other.org", "unknown.org")), entry("b", "uid:2"))
    issue(made, {"a": svid(), "b": svid()})
    with made.subscribe(selectors("uid:1")) as federated, made.subscribe(selectors("uid:2")) as plain:
        await take(federated)
        await take(plain)
        made.set_bundles({"example.org": OWN, "other.org": OTHER})
        assert (await take(federated)).federated == {"other.org": OTHER}
        assert await nothing_comes(plain)
        made.set_bundles({"example.org": OWN})
        assert (await take(federated)).federated == {}


async def test_a_new_bundle_reaches_everyone_and_a_missing_one_is_kept() -> None:
    made = cache()
    with made.subscribe(selectors("uid:1")) as subscription:
        await take(subscription)
        made.set_bundles({})
        assert await nothing_comes(subscription)
        fresh = Bundle(OWN.trust_domain, (X509Authority(b"new root"),))
        made.set_bundles({"example.org": fresh})
        assert (await take(subscription)).bundle == fresh


def test_prefetching_stops_at_the_size_and_leaves_out_who_asked_so() -> None:
    made = cache(*(entry(str(number)) for number in range(9)), entry("no", prefetch=False), size=5)
    assert len(made.take_due()) == 5
    assert "no" not in ids(made.take_due())


async def test_what_is_not_prefetched_is_fetched_for_a_stream() -> None:
    wanted: list[None] = []
    made = X509Cache(OWN, wanted=lambda: wanted.append(None), clock=Clock())
    made.set_entries([entry("no", prefetch=False)], ())
    assert not wanted
    with made.subscribe(selectors("uid:1")):
        assert wanted
        assert ids(made.take_due()) == ["no"]


async def test_the_least_recently_used_makes_room_but_never_one_in_use() -> None:
    made = cache(*(entry(str(number), f"uid:{number}") for number in range(3)), size=3)
    issue(made, {str(number): svid() for number in range(3)})
    with made.subscribe(selectors("uid:0")), made.subscribe(selectors("uid:9")):
        made.peek(selectors("uid:1"))
        made.set_entries([entry("9", "uid:9")], ())
        issue(made, {"9": svid()})
        assert {"0", "9"} < set(made.svids())
        assert made.svid_count == 3
        assert made.next_due() == 3000


async def test_what_was_only_prefetched_makes_room_before_what_was_used() -> None:
    made = cache(*(entry(str(number), f"uid:{number}") for number in range(3)), size=3)
    issue(made, {"0": svid(), "1": svid()})
    with made.subscribe(selectors("uid:1")), made.subscribe(selectors("uid:0")):
        pass
    issue(made, {"2": svid()})
    for number in (3, 4):
        added = str(number)
        made.set_entries([entry(added, f"uid:{added}")], ())
        with made.subscribe(selectors(f"uid:{added}")):
            issue(made, {added: svid()})
    assert sorted(made.svids()) == ["0", "3", "4"]


async def test_room_that_streams_leave_is_taken_back_and_room_that_entries_leave_is_filled() -> None:
    made = cache(*(entry(str(number), f"uid:{number}") for number in range(6)), size=3)
    with ExitStack() as streams:
        for number in range(6):
            streams.enter_context(made.subscribe(selectors(f"uid:{number}")))
        issue(made, {each.id: svid() for each in made.take_due()})
        assert made.svid_count == 6, "all that are in use, whatever the size"
        made.set_entries((), ())
        assert made.svid_count == 6
    made.set_entries((), ())
    assert made.svid_count == 3
    made.set_entries((), [next(iter(made.svids()))])
    assert len(made.take_due()) == 1


async def test_idle_selector_sets_are_forgotten() -> None:
    made = cache(entry("a"))
    issue(made, {"a": svid()})
    with made.subscribe(selectors("uid:1")) as subscription:
        for number in range(1500):
            made.peek(selectors(f"pid:{number}"))
        await take(subscription)
        issue(made, {"a": svid("new")})
        assert (await take(subscription)).identities[0].svid.chain == (b"new",)


async def test_more_selector_sets_in_use_than_idle_ones_are_kept() -> None:
    made = cache(entry("a"))
    issue(made, {"a": svid()})
    with ExitStack() as streams:
        for number in range(1200):
            streams.enter_context(made.subscribe(selectors("uid:2", f"gid:{number}")))
        subscription = streams.enter_context(made.subscribe(selectors("uid:1", "gid:1")))
        assert made.peek(selectors("uid:1", "gid:2")).identities
        await take(subscription)
        issue(made, {"a": svid("new")})
        assert (await take(subscription)).identities[0].svid.chain == (b"new",)


def test_what_takes_much_memory_is_not_kept_for_nobody() -> None:
    made = cache(*(entry(f"{number:03}", "uid:3") for number in range(100)))
    issue(made, {f"{number:03}": svid() for number in range(100)})
    few, crowd = selectors("uid:1"), selectors(*(f"supplementary_gid:{number}" for number in range(1000)))
    assert made.peek(few) is made.peek(few)
    assert made.peek(crowd) is not made.peek(crowd)
    many = selectors("uid:3")
    assert made.peek(many) is not made.peek(many)
    with made.subscribe(many):
        assert made.peek(many) is made.peek(many)
    assert made.peek(many) is not made.peek(many)


def test_responses() -> None:
    made = cache(entry("a", hint="h", federates_with=("other.org",)), entry("b", hint="h"))
    made.set_bundles({"example.org": OWN, "other.org": OTHER})
    issue(made, {"a": svid("leaf"), "b": svid()})
    update = made.peek(selectors("uid:1"))
    response = workload_pb2.X509SVIDResponse.FromString(update.x509_svid_response)
    assert [each.spiffe_id for each in response.svids] == ["spiffe://example.org/a"]
    assert response.svids[0].x509_svid == b"leaf"
    assert response.svids[0].x509_svid_key == b"key"
    assert response.svids[0].bundle == b"root"
    assert response.svids[0].hint == "h"
    assert dict(response.federated_bundles) == {"spiffe://other.org": b"other root"}
    bundles = workload_pb2.X509BundlesResponse.FromString(update.x509_bundles_response)
    assert dict(bundles.bundles) == {"spiffe://example.org": b"root", "spiffe://other.org": b"other root"}
    jwks = workload_pb2.JWTBundlesResponse.FromString(update.jwt_bundles_response)
    assert sorted(jwks.bundles) == ["spiffe://example.org", "spiffe://other.org"]
