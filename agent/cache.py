"""The workloads' X509-SVIDs, found by selectors, and the streams that wait for news of them.

Everything here runs on the event loop and never waits, so no lock is needed. An entry belongs to a workload when its
selectors are a subset of the workload's. Entries are indexed under one of their selectors (each would do, since the
workload must have them all), workloads under all of theirs.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager

from agent.bundle_set import BundleSet
from agent.due import DueTimes
from agent.entries import Entry
from agent.workload_update import WorkloadUpdate, X509Identity, X509Svid
from identity.bundles import Bundle
from identity.selectors import Selector
from identity.spiffeid import TrustDomain

DEFAULT_SIZE = 1000
_LARGEST_BATCH = 500
_IDLE_GROUPS = 1000
_LARGE_SELECTORS = 256
_LARGE_IDENTITIES = 32


class _Group:
    """All streams of workloads with the same selectors; they share one update."""

    def __init__(self, selectors: frozenset[Selector]) -> None:
        self.selectors = selectors
        self.update: WorkloadUpdate | None = None
        self.subscriptions: set[Subscription] = set()

    @property
    def large(self) -> bool:
        """Whether it takes much memory, of which a workload could have a thousand kept by changing its selectors."""
        identities = len(self.update.all_identities) if self.update else 0
        return len(self.selectors) > _LARGE_SELECTORS or identities > _LARGE_IDENTITIES


class Subscription:
    """The updates of one stream: the state as soon as every entry has its SVID, then after each change. It never ends.

    Only the latest matters: what a slow stream has not taken is replaced.
    """

    def __init__(self, cache: X509Cache, group: _Group) -> None:
        self._cache = cache
        self._group = group
        self.started = False
        self.bundles_will_do = False  # in an outage, for who waits for no SVIDs
        self._news = asyncio.Event()
        self._news.set()

    def wake(self) -> None:
        self._news.set()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> WorkloadUpdate:
        while True:
            await self._news.wait()
            self._news.clear()
            update = self._cache.update_of(self._group)
            self.started = self.started or update.complete or self._cache.incomplete_will_do
            # Entries whose SVIDs are still to come, or ran out, are no reason to turn the workload away.
            bundles = self.bundles_will_do and self._cache.incomplete_will_do
            if self.started and (update.identities or update.complete or bundles):
                return update


class X509Cache:
    """Entries, bundles and SVIDs. `size` is how many SVIDs are kept at hand beyond those that streams hold."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        size: int = 0,
        wanted: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`wanted` is called when an SVID has become due before its time."""
        self._size = size or DEFAULT_SIZE
        self._wanted = wanted
        self._clock = clock
        self._trust_domain = bundle.trust_domain.name
        self.bundles = BundleSet(bundle)
        self._entries: dict[str, Entry] = {}
        self._svids: OrderedDict[str, X509Svid] = OrderedDict()  # least recently used first
        self._entries_by_selector: defaultdict[Selector, set[str]] = defaultdict(set)
        self._indexed_under: dict[str, Selector] = {}
        self._groups: OrderedDict[frozenset[Selector], _Group] = OrderedDict()
        self._groups_by_selector: defaultdict[Selector, set[_Group]] = defaultdict(set)
        self._due = DueTimes()
        self.incomplete_will_do = False

    # What the streams and calls ask for

    def matching(self, selectors: frozenset[Selector]) -> list[Entry]:
        """The workload's entries, sorted by id."""
        found: set[str] = set()
        for selector in selectors:
            found |= self._entries_by_selector.get(selector, set())
        entries = (self._entries[entry_id] for entry_id in sorted(found))
        return [entry for entry in entries if entry.selectors <= selectors]

    @contextmanager
    def subscribe(self, selectors: frozenset[Selector]) -> Generator[Subscription, None, None]:
        group = self._group(selectors)
        subscription = Subscription(self, group)
        group.subscriptions.add(subscription)
        try:
            self._touch(group)
            yield subscription
        finally:
            group.subscriptions.discard(subscription)
            if not group.subscriptions and group.large:
                self._forget(group)
            self._forget_idle_groups()

    def peek(self, selectors: frozenset[Selector]) -> WorkloadUpdate:
        """The state now, without waiting for SVIDs that are still missing."""
        group = self._group(selectors)
        update = self.update_of(group)
        if not group.subscriptions and group.large:
            self._forget(group)
        return update

    @property
    def bundle(self) -> Bundle:
        """The agent's own trust domain's."""
        return self.bundles.own

    def bundle_of(self, trust_domain: TrustDomain) -> Bundle | None:
        """Another trust domain's too, while an entry federates with it."""
        return self.bundles.get(trust_domain.name)

    @property
    def svid_count(self) -> int:
        return len(self._svids)

    @property
    def entry_count(self) -> int:
        return len(self._entries)

    def entries(self) -> Mapping[str, Entry]:
        """By id; not to be changed."""
        return self._entries

    def svids(self) -> Mapping[str, X509Svid]:
        """By entry id; not to be changed."""
        return self._svids

    def settle_for_less(self, will_do: bool) -> None:
        """While nobody issues what is missing, streams that wait for it are given what there is."""
        self.incomplete_will_do = will_do
        waiting = (each for group in self._groups.values() for each in group.subscriptions if not each.started)
        for subscription in waiting:
            subscription.wake()

    # What the synchronisation brings

    def set_entries(self, changed: Iterable[Entry], removed: Iterable[str]) -> None:
        """Take over new and changed entries and forget removed ones.

        SVIDs of changed entries stay until renewed, but are not served when the entry gives another SPIFFE ID now.
        """
        affected: list[Entry] = []
        for entry_id in removed:
            entry = self._entries.pop(entry_id, None)
            if entry is not None:
                self._unindex(entry)
                self._svids.pop(entry_id, None)
                self._due.drop(entry_id)
                self._due.outdate(entry_id)
                affected.append(entry)
        for entry in changed:
            known = self._entries.get(entry.id)
            if known == entry:
                continue
            if known is not None:
                self._unindex(known)
                affected.append(known)
            self._entries[entry.id] = entry
            self._index(entry)
            affected.append(entry)
            self._due.outdate(entry.id)
            if entry.id in self._svids:
                self._due.set(entry.id, 0)
        self._evict()
        self._prefetch()
        # Groups of an entry that moved are found under its old selectors as well.
        self._changed(affected)

    def set_bundles(self, bundles: Mapping[str, Bundle]) -> None:
        """Take over all bundles, by trust domain name. The agent's own stays when it is missing."""
        differing = self.bundles.replace(bundles)
        if self._trust_domain in differing:
            self._invalidate(self._groups.values())
        elif differing:
            self._changed(entry for entry in self._entries.values() if not differing.isdisjoint(entry.federates_with))

    # What the renewal takes and brings

    def next_due(self) -> float | None:
        """When the next SVID is to be issued, in Unix seconds; 0 for at once."""
        return self._due.next()

    def take_due(self, limit: int = _LARGEST_BATCH) -> list[Entry]:
        """At most `limit` entries whose SVID is due; those that streams wait for first, then the soonest to expire.

        Each stays due until `store` or `retry` says otherwise.
        """
        due = (self._entries[entry_id] for entry_id in self._due.until(self._clock()))
        taken = heapq.nsmallest(limit, due, key=self._urgency)
        self._due.take(entry.id for entry in taken)
        return taken

    def _urgency(self, entry: Entry) -> tuple[bool, float]:
        svid = self._svids.get(entry.id)
        return not self._is_used(entry), svid.expires_at if svid else 0.0

    def store(self, svids: Mapping[str, X509Svid]) -> None:
        """Take over SVIDs by entry id; those of entries that are gone meanwhile, or have another ID, are dropped.

        An entry that has changed since `take_due` gave it stays due: the server may have issued by what it was before.
        """
        known = (self._entries[entry_id] for entry_id in svids if entry_id in self._entries)
        stored = [entry for entry in known if entry.spiffe_id == svids[entry.id].spiffe_id]
        for entry in stored:
            svid, new = svids[entry.id], entry.id not in self._svids
            self._svids[entry.id] = svid
            if new and not self._is_used(entry):  # nobody has asked for it as yet
                self._svids.move_to_end(entry.id, last=False)
            self._due.set_next(entry.id, svid.rotate_at)
        self._evict()
        self._changed(stored)

    def retry(self, entry_ids: Iterable[str], moment: float) -> None:
        """Have these entries' SVIDs issued at a later moment; at once where one has changed since it was taken."""
        for entry_id in entry_ids:
            if entry_id in self._entries:
                self._due.set_next(entry_id, moment)

    def renew_now(self, entry_ids: Iterable[str]) -> None:
        """Have SVIDs renewed at once, and what is under way once more; the old ones are served until then."""
        self._due.outdate_all()
        self.retry(entry_ids, 0)
        self._wanted()

    # Groups

    def _group(self, selectors: frozenset[Selector]) -> _Group:
        if (group := self._groups.get(selectors)) is None:
            # Before: the new one is idle as yet.
            self._forget_idle_groups()
            group = self._groups[selectors] = _Group(selectors)
            for selector in selectors:
                self._groups_by_selector[selector].add(group)
        self._groups.move_to_end(selectors)
        return group

    def _forget_idle_groups(self) -> None:
        if len(self._groups) <= _IDLE_GROUPS:
            return
        idle = [group for group in self._groups.values() if not group.subscriptions]
        for group in idle[: len(self._groups) - _IDLE_GROUPS]:
            self._forget(group)

    def _forget(self, group: _Group) -> None:
        del self._groups[group.selectors]
        for selector in group.selectors:
            self._groups_by_selector[selector].discard(group)
            if not self._groups_by_selector[selector]:
                del self._groups_by_selector[selector]

    def _touch(self, group: _Group) -> None:
        """Note the use of the group's SVIDs, and ask for those that are missing."""
        missing = False
        for entry in self.matching(group.selectors):
            if entry.id in self._svids:
                self._svids.move_to_end(entry.id)
            elif entry.id not in self._due:
                self._due.set(entry.id, 0)
                missing = True
        if missing:
            self._wanted()

    def update_of(self, group: _Group) -> WorkloadUpdate:
        if group.update is None or group.update.expires_at <= self._clock():
            group.update = self._build(group.selectors)
        return group.update

    def _build(self, selectors: frozenset[Selector]) -> WorkloadUpdate:
        now = self._clock()
        entries = self.matching(selectors)
        ready = [entry for entry in entries if self._is_in_force(entry, now)]
        known = self.bundles.current.by_name
        federated = {
            name: known[name]
            for entry in ready
            for name in sorted(entry.federates_with)
            if name in known and name != self._trust_domain
        }
        return WorkloadUpdate(
            all_identities=[X509Identity(entry, self._svids[entry.id]) for entry in ready],
            bundle=self.bundle,
            federated=federated,
            complete=len(ready) == len(entries),
        )

    def _is_in_force(self, entry: Entry, now: float) -> bool:
        svid = self._svids.get(entry.id)
        return svid is not None and svid.expires_at > now and svid.spiffe_id == entry.spiffe_id

    def _changed(self, entries: Iterable[Entry]) -> None:
        self._invalidate({group for entry in entries for group in self._groups_of(entry)})

    def _groups_of(self, entry: Entry) -> Iterator[_Group]:
        rarest = min((self._groups_by_selector.get(each, set()) for each in entry.selectors), key=len)
        return (group for group in rarest if entry.selectors <= group.selectors)

    def _invalidate(self, groups: Iterable[_Group]) -> None:
        for group in groups:
            group.update = None
            for subscription in group.subscriptions:
                subscription.wake()
            if group.subscriptions:
                self._touch(group)

    def _is_used(self, entry: Entry) -> bool:
        return any(group.subscriptions for group in self._groups_of(entry))

    # Entries

    def _index(self, entry: Entry) -> None:
        rarest = min(entry.selectors, key=lambda each: (len(self._entries_by_selector.get(each, ())), each))
        self._entries_by_selector[rarest].add(entry.id)
        self._indexed_under[entry.id] = rarest

    def _unindex(self, entry: Entry) -> None:
        selector = self._indexed_under.pop(entry.id)
        self._entries_by_selector[selector].discard(entry.id)
        if not self._entries_by_selector[selector]:
            del self._entries_by_selector[selector]

    # SVIDs

    def _prefetch(self) -> None:
        """Ask for SVIDs that no stream waits for yet, as far as there is room."""
        room = self._size - len(self._due)
        if room <= 0 or len(self._due) == len(self._entries):
            return
        missing = (each.id for each in self._entries.values() if each.prefetch and each.id not in self._due)
        fetched = list(itertools.islice(missing, room))
        for entry_id in fetched:
            self._due.set(entry_id, 0)
        if fetched:
            self._wanted()

    def _evict(self) -> None:
        """Drop the SVIDs least recently used beyond the size, except those of open streams."""
        if (extra := len(self._svids) - self._size) <= 0:
            return
        idle = (entry_id for entry_id in list(self._svids) if not self._is_used(self._entries[entry_id]))
        for _, entry_id in zip(range(extra), idle, strict=False):
            del self._svids[entry_id]
            self._due.drop(entry_id)
            self._changed([self._entries[entry_id]])
