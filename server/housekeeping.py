"""What expires in the datastore is deleted: entries and join tokens, and agents where the operator wants that."""

from __future__ import annotations

import asyncio
import random
import time

from operations import duration, metrics
from operations.errors import SpireError
from operations.logs import Logger
from server.config.settings import NodePruning
from server.datastore.store import DataStore
from server.nodes import AttestedNodes

INTERVAL = 300.0
"""Seconds between two rounds."""

NODE_INTERVAL = 3600.0
NODE_JITTER = 900.0
"""Seconds between two rounds for agents, and how much more or less, so that servers of one database take turns."""

_AT_ONCE = 500


class Housekeeping:
    def __init__(self, store: DataStore, log: Logger) -> None:
        self._store = store
        self._log = log

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL)
            await self.prune(int(time.time()))

    @metrics.timed("registration_entry", "manager", "prune")
    async def prune(self, now: int) -> None:
        try:
            for entry in await self._store.prune_entries(now):
                self._log.info("Pruned an expired registration", entry_id=entry.id, spiffe_id=entry.spiffe_id)
            tokens = await self._store.prune_join_tokens(now)
        except SpireError as error:
            self._log.error("Failed to prune what has expired", error=error)
            return
        if tokens:
            self._log.debug("Pruned expired join tokens", count=tokens)


class NodeHousekeeping:
    """Forgets agents whose SVID ended long ago. Banned ones stay banned."""

    def __init__(self, nodes: AttestedNodes, pruning: NodePruning, log: Logger) -> None:
        self._nodes = nodes
        self._pruning = pruning
        self._interval = int(NODE_INTERVAL + random.uniform(-NODE_JITTER, NODE_JITTER))  # noqa: S311 - spreads load
        self._log = log.bind(retry_interval=f"{self._interval}s")

    async def run(self) -> None:
        """Until cancelled."""
        expired_for = duration.text(self._pruning.expired_for)
        self._log.info(
            "Periodic prune of expired nodes started", expired_for=expired_for, include_tofu=self._pruning.tofu
        )
        while True:
            await asyncio.sleep(self._interval)
            await self.prune(time.time())

    async def prune(self, now: float) -> None:
        """One round, of a batch at most."""
        pruning, gone = self._pruning, 0
        before = int(now - pruning.expired_for.total_seconds())
        try:
            # In parts: others write in between.
            while (most := min(pruning.batch_size - gone, _AT_ONCE)) > 0:
                found = await self._nodes.prune(before, include_non_reattestable=pruning.tofu, limit=most)
                gone += len(found)
                if len(found) < most:
                    break
        except SpireError as error:
            self._log.error("Failed during periodic pruning of expired nodes", error=error)
            return
        self._log.info("Pruned expired agents", count=gone)
