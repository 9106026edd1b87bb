"""The datastore: entries, nodes, join tokens, bundles, federation relationships and CA journals, kept durably.

Everything is awaited on one event loop and done by worker threads. A write is committed and synced to disk before its
caller hears of it. Errors: NotFound, AlreadyExists, InvalidArgument, TemporarilyUnavailable (locked, disk full, too
busy), Corrupt and PermanentlyUnusable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from identity.bundles import Bundle
from identity.selectors import Selector
from identity.spiffeid import TrustDomain
from operations.errors import SpireError
from server.datastore import backend, bundles, entries, federation, journals, node_records, nodes, tokens
from server.datastore.backend import DEFAULTS, Settings
from server.datastore.bundles import BundleField
from server.datastore.federation import FederationField, FederationRelationship
from server.datastore.jobs import Work
from server.datastore.migrate import prepare
from server.datastore.mirror import Mirror
from server.datastore.records import (
    AttestedNode,
    Changes,
    DeleteMode,
    Entry,
    EntryField,
    EntryFilter,
    JoinToken,
    NodeField,
    NodeFilter,
    Page,
    Snapshot,
)
from server.datastore.replica import ReplicaReader
from server.datastore.session import Session
from server.datastore.worker import Worker

T = TypeVar("T")
Subscriber = Callable[[Changes], None]

# Requests that may wait, and writes that share one commit.
_QUEUE = 4096
_BATCH = 64
# Seconds.
_DEADLINE = 30.0
_SNAPSHOT_DEADLINE = 600.0


class DataStore:
    """Open it with `await DataStore.open(connection_string)`."""

    def __init__(
        self, database: backend.Backend, settings: Settings = DEFAULTS, *, deadline: float = _DEADLINE
    ) -> None:
        self._deadline = deadline
        self._database = database
        self._subscribers: list[Subscriber] = []
        # Where no connection is lost, nothing happens that subscribers do not hear of.
        self._mirror = Mirror() if database.heartbeat is not None else None
        self._writer = Worker(
            "writer",
            lambda outcome: Session(database, outcome, writer=True, follower=self._mirror),
            limit=_QUEUE,
            batch=_BATCH,
            committed=self._committed,
            heartbeat=database.heartbeat,
        )
        self._reader = self._writer
        lifetime = settings.max_lifetime.total_seconds()
        if database.readers:
            self._reader = Worker(
                "reader",
                lambda outcome: Session(database, outcome, lifetime=lifetime),
                threads=database.readers,
                limit=_QUEUE,
                # The writer's connection stays: it holds the lock that keeps other servers out.
                idle=None if settings.max_idle is None else settings.max_idle - 1,
            )
        copy = database.replica
        self._replica = ReplicaReader(copy, self._reader, lifetime=lifetime) if copy is not None else None

    @classmethod
    async def open(
        cls, connection_string: str, settings: Settings = DEFAULTS, *, deadline: float = _DEADLINE
    ) -> DataStore:
        """Open the database, making or migrating it where needed.

        Raises ConfigurationError for a connection string that cannot be used and for a database that another program
        or a newer version made, Corrupt for a damaged one, and what `Backend.translate` says otherwise. A database
        that is refused is left as it is.
        """
        database = backend.select(connection_string, settings)
        try:
            await asyncio.to_thread(_prepare, database, settings.migrate)
        except asyncio.CancelledError:
            # The thread may wait for another server's end; nobody waits for the thread.
            database.dispose()
            raise
        return cls(database, settings, deadline=deadline)

    async def close(self) -> None:
        """Finish the writes that wait, then let go of the database. Later calls raise TemporarilyUnavailable."""
        if self._replica is not None:
            await self._replica.close()
        await self._reader.close()
        await self._writer.close()
        await asyncio.to_thread(self._database.dispose)

    def subscribe(self, callback: Subscriber) -> Callable[[], None]:
        """Call `callback` on the event loop with the changes of every commit, in their order.

        It runs before the writer's caller resumes, so a cache that follows the store is never behind what was
        acknowledged. It must be quick. The function returned ends the subscription.
        """
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    def _committed(self, changes: Changes) -> None:
        for subscriber in tuple(self._subscribers):
            subscriber(changes)

    async def _read(self, work: Callable[[Connection], T]) -> T:
        return await self._reader.run(lambda connection, _: work(connection), deadline=self._deadline)

    async def _survey(self, work: Callable[[Connection], T]) -> T:
        """Read what may be much: from a copy of the database, where there is one."""
        if self._replica is None:
            return await self._read(work)
        return await self._replica.run(work, deadline=self._deadline)

    async def _write(self, work: Work[T]) -> T:
        try:
            return await self._writer.run(work, deadline=self._deadline)
        finally:
            if self._replica is not None:
                self._replica.written()

    # Entries

    async def create_entry(self, entry: Entry) -> Entry:
        """Store a new entry and return it as stored; a similar one that exists already is returned instead."""
        return (await self.create_or_return_entry(entry))[0]

    async def create_or_return_entry(self, entry: Entry) -> tuple[Entry, bool]:
        """The entry as stored, and whether one with this SPIFFE ID, parent and selectors was there already."""
        return await self._write(lambda connection, changes: entries.create(connection, changes, entry))

    async def get_entry(self, entry_id: str) -> Entry | None:
        return (await self.get_entries([entry_id])).get(entry_id)

    async def get_entries(self, entry_ids: Collection[str]) -> dict[str, Entry]:
        """Those of the entries that exist, by id."""
        return await self._read(lambda connection: entries.fetch(connection, entry_ids))

    async def update_entry(self, entry: Entry, fields: Collection[EntryField] = entries.ALL_FIELDS) -> Entry:
        """Replace these fields of the entry with `entry.id`. Raises NotFound."""
        return await self._write(lambda connection, changes: entries.change(connection, changes, entry, fields))

    async def delete_entry(self, entry_id: str) -> Entry:
        """Delete the entry and return what it was. Raises NotFound."""
        return await self._write(lambda connection, changes: entries.remove(connection, changes, entry_id))

    async def prune_entries(self, expires_before: int) -> list[Entry]:
        """Delete the entries that expired before that time and return them."""
        return await self._write(lambda connection, changes: entries.prune(connection, changes, expires_before))

    async def list_entries(
        self, wanted: EntryFilter | None = None, *, page_size: int = 0, page_token: str = ""
    ) -> Page[Entry]:
        """A page of entries, oldest first; page size 0 means all of them."""
        chosen = wanted or EntryFilter()
        return await self._survey(lambda connection: entries.listing(connection, chosen, page_size, page_token))

    async def count_entries(self, wanted: EntryFilter | None = None) -> int:
        return await self._survey(lambda connection: entries.count(connection, wanted or EntryFilter()))

    async def snapshot(self) -> Snapshot:
        """All entries and node selectors of one moment, for an index to begin with."""
        # By the writer, so that no commit falls between the snapshot and the first change a subscriber hears of.
        mirror = self._mirror or Mirror()
        return await self._writer.run(lambda connection, _: mirror.snapshot(connection), deadline=_SNAPSHOT_DEADLINE)

    # Attested nodes

    async def create_node(self, node: AttestedNode) -> AttestedNode:
        """Store a new node, and its selectors if it brings any. Raises AlreadyExists."""
        return await self._write(lambda connection, changes: nodes.create(connection, changes, node))

    async def admit_node(self, node: AttestedNode, record: bytes | None = None) -> None:
        """Store an attested node, known or not, with its selectors and what its attestor remembers of it (None: as
        before), in one transaction. Raises Refused if banned."""
        await self._write(lambda connection, changes: nodes.admit(connection, changes, node, record))

    async def evict_node(self, spiffe_id: str) -> bool:
        """Take no certificate of the node until it attests again; whether there was one to evict."""
        return await self._write(lambda connection, _: nodes.evict(connection, spiffe_id))

    async def get_node_record(self, spiffe_id: str) -> bytes | None:
        return await self._read(lambda connection: node_records.fetch(connection, spiffe_id))

    async def put_node_record(self, spiffe_id: str, record: bytes) -> bool:
        """Replace what an attestor remembers of a node; whether there is such a node."""
        return await self._write(lambda connection, _: node_records.put(connection, spiffe_id, record))

    async def activate_node(self, spiffe_id: str, serial_number: str) -> AttestedNode | None:
        """Make the new certificate of that number the node's only one, unless that is no longer right.

        Returns the node as it is afterwards, None where there is none.
        """
        return await self._write(lambda connection, _: nodes.activate(connection, spiffe_id, serial_number))

    async def get_node(self, spiffe_id: str) -> AttestedNode | None:
        """The node with its selectors."""
        return (await self.get_nodes([spiffe_id])).get(spiffe_id)

    async def get_nodes(self, spiffe_ids: Collection[str]) -> dict[str, AttestedNode]:
        """Those of the nodes that exist, with their selectors, by SPIFFE ID."""
        return await self._read(lambda connection: nodes.fetch(connection, spiffe_ids))

    async def update_node(self, node: AttestedNode, fields: Collection[NodeField] = nodes.ALL_FIELDS) -> AttestedNode:
        """Replace these fields of the node with `node.spiffe_id`. Raises NotFound."""
        return await self._write(lambda connection, _: nodes.change(connection, node, fields))

    async def delete_node(self, spiffe_id: str) -> AttestedNode:
        """Delete the node with its selectors, and the alias entry its join token made. Raises NotFound."""
        return await self._write(lambda connection, changes: nodes.remove(connection, changes, spiffe_id))

    async def prune_nodes(
        self, expired_before: int, *, include_non_reattestable: bool = False, limit: int = 500
    ) -> list[AttestedNode]:
        """Delete up to `limit` nodes that expired before that time, and return them; banned ones stay."""
        return await self._write(
            lambda connection, changes: nodes.prune(
                connection, changes, expired_before, include_non_reattestable, limit
            )
        )

    async def list_nodes(
        self,
        wanted: NodeFilter | None = None,
        *,
        page_size: int = 0,
        page_token: str = "",
        with_selectors: bool = False,
    ) -> Page[AttestedNode]:
        """A page of nodes, oldest first; page size 0 means all of them."""
        chosen = wanted or NodeFilter()
        return await self._survey(
            lambda connection: nodes.listing(connection, chosen, page_size, page_token, with_selectors)
        )

    async def count_nodes(self, wanted: NodeFilter | None = None) -> int:
        return await self._survey(lambda connection: nodes.count(connection, wanted or NodeFilter()))

    async def set_node_selectors(self, spiffe_id: str, selectors: Sequence[Selector]) -> None:
        """Replace the selectors of a node, which need not exist yet."""
        await self._write(lambda connection, changes: nodes.set_selectors(connection, changes, spiffe_id, selectors))

    async def get_node_selectors(self, spiffe_id: str) -> tuple[Selector, ...]:
        return await self._read(lambda connection: nodes.get_selectors(connection, spiffe_id))

    # Join tokens

    async def create_join_token(self, token: JoinToken) -> None:
        """Store a new token. Raises AlreadyExists."""
        await self._write(lambda connection, _: tokens.create(connection, token))

    async def get_join_token(self, token: str) -> JoinToken | None:
        return await self._read(lambda connection: tokens.fetch(connection, token))

    async def take_join_token(self, token: str) -> JoinToken | None:
        """Use the token up: one caller gets it, all others None. It may have expired, which the caller must check."""
        return await self._write(lambda connection, _: tokens.take(connection, token))

    async def delete_join_token(self, token: str) -> None:
        """Raises NotFound."""
        await self._write(lambda connection, _: tokens.remove(connection, token))

    async def prune_join_tokens(self, expires_before: int) -> int:
        """Delete the tokens that expired before that time; how many they were."""
        return await self._write(lambda connection, _: tokens.prune(connection, expires_before))

    # Bundles

    async def get_bundle(self, trust_domain: TrustDomain) -> Bundle | None:
        return await self._read(lambda connection: bundles.fetch(connection, trust_domain))

    async def create_bundle(self, bundle: Bundle) -> Bundle:
        """Store a bundle where there is none. Raises AlreadyExists."""
        return await self._write(lambda connection, changes: bundles.create(connection, changes, bundle))

    async def set_bundle(self, bundle: Bundle) -> Bundle:
        """Store the bundle as it is, in the place of the one there was, if any."""
        return await self._write(lambda connection, changes: bundles.put(connection, changes, bundle))

    async def replace_bundle(self, known: Bundle | None, bundle: Bundle) -> bool:
        """Store the bundle as it is, if what there is is `known`, None for none; whether it was."""
        return await self._write(lambda connection, changes: bundles.replace_known(connection, changes, known, bundle))

    async def append_bundle(self, bundle: Bundle) -> Bundle:
        """Add the authorities that are not there yet; the number goes up by one if there are any."""
        return await self._write(lambda connection, changes: bundles.append(connection, changes, bundle))

    async def update_bundle(self, bundle: Bundle, fields: Collection[BundleField] = bundles.ALL_FIELDS) -> Bundle:
        """Replace these fields of the bundle of `bundle.trust_domain`. Raises NotFound."""
        return await self._write(lambda connection, changes: bundles.change(connection, changes, bundle, fields))

    async def edit_bundle(self, trust_domain: TrustDomain, change: Callable[[Bundle], Bundle]) -> Bundle:
        """Replace the bundle by `change(bundle)` in one transaction, counting its number up if it differs.

        `change` is pure and quick: it runs on the writer's thread, and may run twice. What it raises is raised here
        and nothing is written. Raises NotFound.
        """
        return await self._write(lambda connection, changes: bundles.edit(connection, changes, trust_domain, change))

    async def prune_bundle(self, trust_domain: TrustDomain, expires_before: int) -> bool:
        """Drop the authorities that end at that time or before; whether there were any. Raises Refused rather than
        leave a trust domain without any authority of a kind it had."""
        from server.datastore.pruning import without_expired

        old = await self.get_bundle(trust_domain)
        if old is None or without_expired(old, expires_before) == old:
            return False
        await self.edit_bundle(trust_domain, lambda bundle: without_expired(bundle, expires_before))
        return True

    async def delete_bundle(self, trust_domain: TrustDomain, mode: DeleteMode = DeleteMode.RESTRICT) -> None:
        """Raises NotFound, and Refused where entries federate with it and the mode is RESTRICT."""
        await self._write(lambda connection, changes: bundles.remove(connection, changes, trust_domain, mode))

    async def list_bundles(
        self, *, page_size: int = 0, page_token: str = "", without: TrustDomain | None = None
    ) -> Page[Bundle]:
        """A page of bundles, by trust domain, but for that of `without`; page size 0 means all of them."""
        return await self._read(lambda connection: bundles.listing(connection, page_size, page_token, without))

    async def count_bundles(self) -> int:
        return await self._read(bundles.count)

    # Federation relationships

    async def create_federation_relationship(self, relationship: FederationRelationship) -> FederationRelationship:
        """Store the relationship and the bundle that it brings, if any, as `set_bundle` does. Raises AlreadyExists."""
        return await self._write(lambda connection, changes: federation.create(connection, changes, relationship))

    async def get_federation_relationship(self, trust_domain: TrustDomain) -> FederationRelationship | None:
        return await self._read(lambda connection: federation.fetch(connection, trust_domain))

    async def update_federation_relationship(
        self, relationship: FederationRelationship, fields: Collection[FederationField] = federation.ALL_FIELDS
    ) -> FederationRelationship:
        """Replace these fields; the relationship as it is then, with the bundle there is. Raises NotFound."""
        return await self._write(
            lambda connection, changes: federation.change(connection, changes, relationship, fields)
        )

    async def list_federation_relationships(
        self, *, page_size: int = 0, page_token: str = "", with_bundles: bool = True
    ) -> Page[FederationRelationship]:
        """A page of relationships, oldest first; page size 0 means all of them."""
        return await self._read(lambda connection: federation.listing(connection, page_size, page_token, with_bundles))

    async def delete_federation_relationship(self, trust_domain: TrustDomain) -> None:
        """Delete the relationship, not the bundle. Raises NotFound."""
        await self._write(lambda connection, _: federation.remove(connection, trust_domain))

    # CA journals

    async def get_ca_journal(self, server: str = "") -> bytes | None:
        """The journal of that server; "" where only one uses the database."""
        return await self._read(lambda connection: journals.fetch(connection, server))

    async def set_ca_journal(self, data: bytes, server: str = "") -> None:
        await self._write(lambda connection, _: journals.put(connection, server, data))

    async def delete_ca_journal(self, server: str = "") -> None:
        await self._write(lambda connection, _: journals.remove(connection, server))


def _prepare(database: backend.Backend, migrate: bool) -> None:
    try:
        database.identify()
        with database.connect_to_migrate() as connection:
            prepare(connection, database.where, migrate=migrate)
    except DBAPIError as error:
        database.dispose()
        raise database.translate(error) from error
    except SpireError:
        database.dispose()
        raise
