"""What the subscribers of a store know, so that they can be told what became different while nobody watched.

A connection that is lost leaves questions: a commit under way may have been made or not, a standby that took over may
lack the last ones, somebody may have restored a backup. So a writer that connects anew compares the database with what
it told. Entries and selectors are the subscribers' own objects; it costs a dictionary. It belongs to the writer's
thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from sqlalchemy import Connection

from identity.selectors import Selector
from server.datastore import bundles, entries, nodes
from server.datastore.records import Changes, Entry, Snapshot

V = TypeVar("V")
G = TypeVar("G")


class Mirror:
    """Empty, and without an opinion, until a snapshot was taken."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] | None = None
        self._node_selectors: dict[str, tuple[Selector, ...]] = {}

    def snapshot(self, connection: Connection) -> Snapshot:
        """All there is, for somebody who follows from here on."""
        snapshot = Snapshot(entries.everything(connection), nodes.all_selectors(connection))
        self._entries = {entry.id: entry for entry in snapshot.entries}
        self._node_selectors = dict(snapshot.node_selectors)
        return snapshot

    def note(self, changes: Changes) -> None:
        """Take over what a commit changed."""
        if self._entries is None:
            return
        for entry_id, entry in changes.entries.items():
            if entry is None:
                self._entries.pop(entry_id, None)
            else:
                self._entries[entry_id] = entry
        for spiffe_id, selectors in changes.node_selectors.items():
            if selectors:
                self._node_selectors[spiffe_id] = selectors
            else:
                self._node_selectors.pop(spiffe_id, None)

    def reconnected(self, connection: Connection) -> Changes:
        """What is different in the database now; any bundle may have changed."""
        if self._entries is None:
            return Changes()
        before, selectors_before = self._entries, self._node_selectors
        self.snapshot(connection)
        return Changes(
            _difference(before, self._entries, None),
            _difference(selectors_before, self._node_selectors, ()),
            set(bundles.names(connection)),
        )


def _difference(before: Mapping[str, V], now: Mapping[str, V], gone: G) -> dict[str, V | G]:
    changed: dict[str, V | G] = {key: value for key, value in now.items() if before.get(key) != value}
    changed.update(dict.fromkeys(before.keys() - now.keys(), gone))
    return changed
