"""Which entries each agent may have, kept in memory.

An agent is authorized for the entries below it: those whose parent is the agent, or a node alias it matches, and those
whose parent is the SPIFFE ID of one of these, and so on. A node alias is an entry whose parent is the server; an agent
matches it when the alias's selectors are among the agent's node selectors. Expired entries do not count, and nothing
is reached through them.

The index follows the commits of the datastore, so it is never behind what was acknowledged. It lives on the event
loop's thread.
"""

from __future__ import annotations

import gc
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from identity.selectors import Selector
from identity.spiffeid import TrustDomain, server_id
from operations import metrics
from server.datastore.convert import entry_to_proto
from server.datastore.records import Changes, Entry
from server.datastore.store import DataStore

K = TypeVar("K")


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class IndexedEntry:
    """An entry, and `proto_bytes`: the same as a serialised types.Entry."""

    record: Entry
    proto_bytes: bytes

    @property
    def revision(self) -> int:
        return self.record.revision_number


class EntryIndex:
    """`await EntryIndex.follow(store, trust_domain)` gives one that is filled and kept up to date."""

    def __init__(self, trust_domain: TrustDomain, *, now: Callable[[], float] = time.time) -> None:
        self._alias_parent = str(server_id(trust_domain))
        self._now = now
        self._entries: dict[str, IndexedEntry] = {}
        # Sets in the order of arrival: dicts by entry id.
        self._by_parent: defaultdict[str, dict[str, IndexedEntry]] = defaultdict(dict)
        self._by_spiffe_id: defaultdict[str, dict[str, IndexedEntry]] = defaultdict(dict)
        # An alias stands under one of its selectors only: an agent that matches it has that one too.
        self._aliases: defaultdict[Selector, dict[str, IndexedEntry]] = defaultdict(dict)
        self._node_selectors: dict[str, frozenset[Selector]] = {}

    @classmethod
    @metrics.timed("entry", "cache", "reload")
    async def follow(
        cls, store: DataStore, trust_domain: TrustDomain, *, now: Callable[[], float] = time.time
    ) -> EntryIndex:
        """Fill an index from the store and keep it up to date from then on."""
        index = cls(trust_domain, now=now)
        # Changes that are committed while the snapshot is on its way are applied again, which is harmless.
        missed: list[Changes] = []
        cancel = store.subscribe(missed.append)
        try:
            with _collector_paused():
                snapshot = await store.snapshot()
                index.apply(Changes({entry.id: entry for entry in snapshot.entries}, dict(snapshot.node_selectors)))
        finally:
            cancel()
        for changes in missed:
            index.apply(changes)
        store.subscribe(index.apply)
        return index

    def apply(self, changes: Changes) -> None:
        """Take over what a commit changed."""
        for entry_id, entry in changes.entries.items():
            self._remove(entry_id)
            if entry is not None:
                self._add(entry)
        for spiffe_id, selectors in changes.node_selectors.items():
            if selectors:
                self._node_selectors[spiffe_id] = frozenset(selectors)
            else:
                self._node_selectors.pop(spiffe_id, None)
        metrics.gauge("entry", "entries_by_entryid_cache", "count", value=len(self._entries))

    def get(self, entry_id: str) -> IndexedEntry | None:
        """The entry, whoever may have it."""
        return self._entries.get(entry_id)

    def authorized_entries(self, agent_id: str) -> Sequence[IndexedEntry]:
        """The entries that the agent may have, each once."""
        now = self._now()
        found: list[IndexedEntry] = []
        # Several aliases may have one SPIFFE ID.
        parents = list(dict.fromkeys((agent_id, *self._aliases_of(agent_id, now))))
        seen = set(parents)
        for parent in parents:
            children = self._by_parent.get(parent)
            if children is None:
                continue
            for child in children.values():
                if _expired(child.record, now):
                    continue
                found.append(child)
                spiffe_id = child.record.spiffe_id
                if spiffe_id not in seen:
                    seen.add(spiffe_id)
                    parents.append(spiffe_id)
        return found

    def lookup(self, agent_id: str, entry_id: str) -> IndexedEntry | None:
        """The entry, if the agent may have it. Costs the depth of the tree, not the number of entries."""
        entry = self._entries.get(entry_id)
        if entry is None:
            return None
        now = self._now()
        return entry if self._is_below(entry, {agent_id, *self._aliases_of(agent_id, now)}, now) else None

    def _is_below(self, entry: IndexedEntry, roots: set[str], now: float) -> bool:
        if entry.record.parent_id == self._alias_parent:
            return False
        pending = [entry]
        seen: set[str] = set()
        while pending:
            record = pending.pop().record
            if _expired(record, now):
                continue
            if record.parent_id in roots:
                return True
            if record.parent_id not in seen:
                seen.add(record.parent_id)
                pending.extend(self._by_spiffe_id.get(record.parent_id, {}).values())
        return False

    def _aliases_of(self, agent_id: str, now: float) -> Iterator[str]:
        """The SPIFFE IDs of the node aliases that the agent matches."""
        selectors = self._node_selectors.get(agent_id, frozenset())
        for selector in selectors:
            for alias in self._aliases.get(selector, {}).values():
                if selectors.issuperset(alias.record.selectors) and not _expired(alias.record, now):
                    yield alias.record.spiffe_id

    def _add(self, record: Entry) -> None:
        entry = IndexedEntry(record, entry_to_proto(record).SerializeToString(deterministic=True))
        self._entries[record.id] = entry
        if record.parent_id == self._alias_parent:
            self._aliases[record.selectors[0]][record.id] = entry
        else:
            self._by_parent[record.parent_id][record.id] = entry
            self._by_spiffe_id[record.spiffe_id][record.id] = entry

    def _remove(self, entry_id: str) -> None:
        entry = self._entries.pop(entry_id, None)
        if entry is None:
            return
        if entry.record.parent_id == self._alias_parent:
            _discard(self._aliases, entry.record.selectors[0], entry_id)
        else:
            _discard(self._by_parent, entry.record.parent_id, entry_id)
            _discard(self._by_spiffe_id, entry.record.spiffe_id, entry_id)


def _discard(table: defaultdict[K, dict[str, IndexedEntry]], key: K, entry_id: str) -> None:
    members = table[key]
    del members[entry_id]
    if not members:
        del table[key]


@contextmanager
def _collector_paused() -> Generator[None, None, None]:
    """Without the garbage collector, which would go through the growing index again and again for nothing."""
    paused = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.enable()


def _expired(record: Entry, now: float) -> bool:
    return bool(record.expires_at) and record.expires_at <= now
