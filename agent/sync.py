"""Keeping up with the server's entries and bundles."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

from agent.backoff import Backoff, jittered
from agent.cache import X509Cache
from agent.denial import is_banned, is_unknown_authority, must_reattest
from agent.entries import Entry
from agent.metrics import tell_sync
from agent.outage import Outage
from agent.server_client import EntryChanges, ServerClient
from identity.bundles import Bundle
from operations import logs, metrics
from operations.errors import SpireError
from transport.status import Code, RpcError

DEFAULT_INTERVAL = 5.0
_CEILING = 60.0
SYNC = "entries"

_log = logs.get("manager")


async def _never() -> bool:
    return False


class Synchroniser:
    """`on_bundle` is awaited with the trust domain's own bundle, once the cache has it.

    Entries whose SVIDs are to be stored go to `to_store`, where there is one, and to no workload.
    """

    def __init__(
        self,
        client: ServerClient,
        cache: X509Cache,
        on_bundle: Callable[[Bundle], Awaitable[None]],
        *,
        to_store: X509Cache | None = None,
        interval: float = DEFAULT_INTERVAL,
        by_revision: bool = True,
        tolerates_stranger: Callable[[], Awaitable[bool]] = _never,
        outage: Outage | None = None,
    ) -> None:
        """`interval` is in seconds. `by_revision` asks only for entries that changed.

        `tolerates_stranger` says whether to go on although the server is one that nobody vouches for.
        """
        self._client = client
        self._cache = cache
        self._to_store = to_store
        self._on_bundle = on_bundle
        self._interval = interval
        self._by_revision = by_revision
        self._tolerates_stranger = tolerates_stranger
        self._outage = outage or Outage()
        self._entries: dict[str, Entry] = {}
        self._federates_with: frozenset[str] = frozenset()
        self.bundles: Mapping[str, Bundle] = {}
        """As they came last, by trust domain name."""
        self.last_success = 0.0
        """Unix seconds."""

    def resume(self, entries: Mapping[str, Entry]) -> None:
        """Go on from entries that were kept: the first answer says which of them have changed or are gone."""
        self._entries = dict(entries)
        self._federates_with = _federates_with(self._entries)

    async def synchronise(self) -> None:
        """Ask once. Nothing is taken over unless everything came. Raises RpcError and Refused."""
        changes = await self._fetch()
        entries = self._entries
        federates_with = self._federates_with
        if changes.changed or changes.removed:
            entries = {**self._entries, **{entry.id: entry for entry in changes.changed}}
            for entry_id in changes.removed:
                del entries[entry_id]
            federates_with = _federates_with(entries)
        bundles = await self._client.bundles(federates_with)
        stale = sum(1 for entry in changes.changed if entry.id in self._entries)
        if _log.enabled("debug"):
            _tell(changes, self._entries)
        self._entries, self._federates_with = entries, federates_with
        self.bundles = bundles
        self._cache.set_bundles(bundles)
        stored = [entry for entry in changes.changed if entry.store_svid]
        served = [entry for entry in changes.changed if not entry.store_svid]
        self._cache.set_entries(served, [*changes.removed, *(entry.id for entry in stored)])
        if self._to_store is not None:
            self._to_store.set_bundles(bundles)
            self._to_store.set_entries(stored, [*changes.removed, *(entry.id for entry in served)])
        self.last_success = time.time()
        self._outage.over(SYNC)
        missing = len(changes.changed) - stale
        tell_sync(self._cache, bundles=len(bundles), missing=missing, stale=stale, dropped=changes.removed)
        await self._on_bundle(self._cache.bundle)

    @metrics.timed("manager", "sync", "fetch_entries_updates")
    async def _fetch(self) -> EntryChanges:
        if self._by_revision:
            try:
                return await self._client.sync_entries(self._entries)
            except RpcError as error:
                if error.code is not Code.UNIMPLEMENTED:
                    raise
                _log.info("The server does not synchronise by revision; fetching all entries each time")
                self._by_revision = False
        return await self._client.authorized_entries(self._entries)

    async def run(self) -> None:
        """Ask again and again. Raises RpcError when the agent is not welcome, or meets a server it does not trust."""
        backoff = Backoff(self._interval, ceiling=_CEILING)
        # Spread over a whole interval: agents that a power cut has started together ask one after another.
        wait = backoff.next() or self._interval
        while True:
            await asyncio.sleep(wait)
            try:
                await self.synchronise()
            except SpireError as error:
                if is_unknown_authority(error) and await self._tolerates_stranger():
                    wait = self._pause()
                    continue
                _log.error("Synchronize failed", error=error)
                if must_reattest(error) or is_banned(error) or is_unknown_authority(error):
                    raise
                self._outage.failed(SYNC, error)
                wait = backoff.next() or _CEILING
            else:
                backoff.reset()
                wait = self._pause()

    def _pause(self) -> float:
        """Seconds between two synchronisations, with jitter so that agents started together drift apart."""
        interval = self._interval if self._cache.svid_count else min(self._interval, DEFAULT_INTERVAL)
        return jittered(interval)


def _tell(changes: EntryChanges, known: Mapping[str, Entry]) -> None:
    """A line for each entry that came, changed or went: who wonders where an identity is looks for these."""
    for entry in changes.changed:
        what = "Entry updated" if entry.id in known else "Entry created"
        _log.debug(what, entry=entry.id, spiffe_id=entry.spiffe_id)
    for entry_id in changes.removed:
        if entry_id in known:
            _log.debug("Entry removed", entry=entry_id, spiffe_id=known[entry_id].spiffe_id)


def _federates_with(entries: Mapping[str, Entry]) -> frozenset[str]:
    return frozenset(name for entry in entries.values() for name in entry.federates_with)
