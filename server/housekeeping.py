"""What expires in the datastore is deleted: entries and join tokens."""

from __future__ import annotations

import asyncio
import time

from operations import metrics
from operations.errors import SpireError
from operations.logs import Logger
from server.datastore.store import DataStore

INTERVAL = 300.0
"""Seconds between two rounds."""


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
