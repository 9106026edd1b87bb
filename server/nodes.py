"""Attested nodes, remembered: every call of an agent asks for its node, and a node changes only when it renews.

All writes of nodes go through here, so that what is remembered is never behind what was acknowledged by this server.
Where several servers share a database, `staleness` bounds how long another's ban goes unnoticed.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import OrderedDict
from collections.abc import Collection
from math import inf

from msgspec.structs import replace

from identity.selectors import Selector
from operations.errors import InvalidArgument, NotFound
from plugins.nodeattestor import RECORD_LIMIT, Challenge, ServerNodeAttestor
from plugins.nodeattestor import AttestedNode as Verdict
from server.datastore.records import AttestedNode, NodeField
from server.datastore.store import DataStore

MAX_NODES = 65_536


class AttestedNodes:
    """`staleness` is in seconds."""

    def __init__(self, store: DataStore, *, staleness: float = inf, size: int = MAX_NODES) -> None:
        self._store = store
        self._staleness = staleness
        self._size = size
        self._known: OrderedDict[str, tuple[AttestedNode, float]] = OrderedDict()
        self._writes = 0

    async def get(self, spiffe_id: str) -> AttestedNode | None:
        """The node, or None when nobody with this ID was attested. The remembered one has no selectors."""
        now = asyncio.get_running_loop().time()
        known = self._known.get(spiffe_id)
        if known is not None and now - known[1] < self._staleness:
            self._known.move_to_end(spiffe_id)
            return known[0]
        writes = self._writes
        node = await self._store.get_node(spiffe_id)
        # A write that went on meanwhile may have made this answer an old one.
        if node is not None and writes == self._writes:
            self._known[spiffe_id] = (replace(node, selectors=()), now)
            if len(self._known) > self._size:
                self._known.popitem(last=False)
        return node

    async def admit(self, node: AttestedNode, record: bytes | None = None) -> None:
        """Write down a node that was attested, with its selectors, and what its attestor remembers of it; None leaves
        that as it is. Raises Refused for a banned one."""
        try:
            await self._store.admit_node(node, record)
        finally:
            self._forget(node.spiffe_id)

    async def update(self, node: AttestedNode, fields: Collection[NodeField]) -> None:
        """Replace these fields of the node with `node.spiffe_id`. Raises NotFound."""
        try:
            await self._store.update_node(node, fields)
        finally:
            self._forget(node.spiffe_id)

    async def activate(self, spiffe_id: str, serial_number: str) -> AttestedNode | None:
        """Make the SVID of that number, if the node was given it last, its only one; the node as it is then."""
        try:
            return await self._store.activate_node(spiffe_id, serial_number)
        finally:
            self._forget(spiffe_id)

    async def ban(self, spiffe_id: str) -> None:
        """Take the node's serial numbers; when its SVID ends stays known. Raises NotFound."""
        node = await self._store.get_node(spiffe_id)
        if node is None:
            raise NotFound("agent not found")
        await self.update(replace(node, serial_number="", new_serial_number=""), ("serial_number", "new_serial_number"))

    async def evict(self, spiffe_id: str) -> bool:
        """Take no SVID of the node until it attests again; whether there was one to evict."""
        try:
            return await self._store.evict_node(spiffe_id)
        finally:
            self._forget(spiffe_id)

    async def delete(self, spiffe_id: str) -> None:
        """Raises NotFound."""
        try:
            await self._store.delete_node(spiffe_id)
        finally:
            self._forget(spiffe_id)

    async def prune(self, expired_before: int, *, include_non_reattestable: bool, limit: int) -> list[AttestedNode]:
        """Delete nodes whose SVID ended before that time, and return them."""
        gone = await self._store.prune_nodes(
            expired_before, include_non_reattestable=include_non_reattestable, limit=limit
        )
        for node in gone:
            self._forget(node.spiffe_id)
        return gone

    def _forget(self, spiffe_id: str) -> None:
        self._writes += 1
        self._known.pop(spiffe_id, None)


class WithIdAsSelector:
    """A node attestor whose agents have one more selector, `spiffe_id` with their own ID."""

    def __init__(self, attestor: ServerNodeAttestor) -> None:
        self._attestor = attestor

    @property
    def name(self) -> str:
        return self._attestor.name

    async def attest(self, payload: bytes, challenge: Challenge) -> Verdict:
        verdict = await self._attestor.attest(payload, challenge)
        selectors = (*verdict.selectors, Selector("spiffe_id", verdict.spiffe_id))
        return dataclasses.replace(verdict, selectors=selectors)


class StoredNodeRecords:
    """The datastore's nodes as attestors remember them: plugins.nodeattestor.NodeRecords."""

    def __init__(self, store: DataStore, nodes: AttestedNodes) -> None:
        self._store = store
        self._nodes = nodes

    async def get(self, spiffe_id: str) -> bytes | None:
        return await self._store.get_node_record(spiffe_id)

    async def put(self, spiffe_id: str, record: bytes) -> None:
        await self._store.put_node_record(spiffe_id, _bounded(record))

    async def evict(self, spiffe_id: str) -> None:
        await self._nodes.evict(spiffe_id)

    async def known(self, spiffe_id: str) -> bool:
        """Whether there is an agent of this ID."""
        return await self._nodes.get(spiffe_id) is not None


def _bounded(record: bytes) -> bytes:
    if len(record) > RECORD_LIMIT:
        raise InvalidArgument(f"a node's record of {len(record)} bytes is longer than {RECORD_LIMIT}")
    return record
