"""Keeping SVIDStores in step: the SVIDs of entries that ask for it go into the store that their selectors name.

An entry with `storeSVID` has selectors of one type, the store's name; their values say where in the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import eq

from agent.cache import X509Cache
from agent.entries import Entry
from agent.workload_update import X509Svid
from identity.bundles import Bundle
from identity.selectors import Selector
from identity.spiffeid import TrustDomain
from operations import logs, metrics
from operations.errors import InvalidArgument, SpireError
from plugins.svidstore import StoredX509Svid, SvidStore
from transport.status import Code, RpcError

INTERVAL = 5.0
"""Seconds between two looks at what there is to store, and before what failed is tried again."""

SIZE = 100_000
"""SVIDs that are kept for stores."""

_log = logs.get("svid_store_service")


@dataclass(frozen=True, slots=True)
class _Stored:
    """What a store was given last."""

    entry: Entry
    svid: X509Svid
    bundles: tuple[Bundle, ...]


Place = tuple[str, frozenset[Selector]]
"""Whose SVID it is, by the entry's id, and where it is stored, by its selectors."""


class SvidStores:
    """`cache` has the entries that are to be stored, with their SVIDs."""

    def __init__(self, cache: X509Cache, stores: Mapping[str, SvidStore], interval: float = INTERVAL) -> None:
        self._cache = cache
        self._stores = stores
        self._interval = interval
        self._stored: dict[Place, _Stored] = {}

    async def run(self) -> None:
        """Until cancelled. A store that hangs holds up nobody but itself."""
        async with asyncio.TaskGroup() as tasks:
            for name in self._stores:
                tasks.create_task(self._serve(partial(eq, name)))
            tasks.create_task(self._serve(lambda store: store not in self._stores))

    async def _serve(self, mine: Callable[[str], bool]) -> None:
        while True:
            with metrics.call("store_svid_updates"):
                await self.update(mine)
            await asyncio.sleep(self._interval)

    async def update(self, mine: Callable[[str], bool] = lambda _: True) -> None:
        """Delete what is to go from the stores that are `mine`, then put what they do not have as it is now."""
        entries = self._cache.entries()
        for (entry_id, selectors), stored in list(self._stored.items()):
            entry = entries.get(entry_id)
            if mine(_store_of(stored.entry)) and (entry is None or entry.selectors != selectors):
                await self._delete(stored.entry)
        for entry_id, entry in list(entries.items()):
            svid = self._cache.svids().get(entry_id)
            if svid is None or svid.spiffe_id != entry.spiffe_id or not mine(_store_of(entry)):
                continue
            wanted = _Stored(entry, svid, self._bundles(entry))
            if self._stored.get((entry_id, entry.selectors)) != wanted:
                await self._put(wanted)

    async def _put(self, wanted: _Stored) -> None:
        entry, fields = wanted.entry, _fields(wanted.entry)
        store = self._stores.get(_store_of(entry))
        if store is None:
            _log.error("Error storing SVID: SVIDStore not found", **fields)
        else:
            try:
                await store.put(_message(wanted), _metadata(entry))
            except SpireError as error:
                _log.error("Failed to put X509-SVID", error=error, **fields)
                return
            _log.debug("SVID stored successfully", **fields)
        self._stored[entry.id, entry.selectors] = wanted

    async def _delete(self, entry: Entry) -> None:
        """What a store cannot delete because of its selectors was never in it."""
        store = self._stores.get(_store_of(entry))
        if store is not None and not await self._deleted(store, entry):
            return
        # Another entry may have taken the same place meanwhile: it is put again.
        self._stored = {place: stored for place, stored in self._stored.items() if place[1] != entry.selectors}

    async def _deleted(self, store: SvidStore, entry: Entry) -> bool:
        fields = _fields(entry)
        try:
            await store.delete(_metadata(entry))
        except SpireError as error:
            if not _is_malformed(error):
                _log.error("Failed to delete SVID", error=error, **fields)
                return False
            _log.debug("Failed to delete SVID because of malformed selectors", error=error, **fields)
        else:
            _log.debug("SVID deleted successfully", **fields)
        return True

    def _bundles(self, entry: Entry) -> tuple[Bundle, ...]:
        """The agent's own trust domain's, then those that the entry federates with, as far as there are any."""
        own = self._cache.bundle
        others = (self._cache.bundle_of(TrustDomain(name)) for name in entry.federates_with)
        return (own, *(each for each in others if each is not None and each.trust_domain != own.trust_domain))


def _store_of(entry: Entry) -> str:
    """The store's name; "" for an entry whose selectors name several."""
    names = {selector.type for selector in entry.selectors}
    return names.pop() if len(names) == 1 else ""


def _message(stored: _Stored) -> StoredX509Svid:
    own, *others = stored.bundles
    return StoredX509Svid(
        spiffe_id=stored.entry.spiffe_id,
        chain=stored.svid.chain,
        private_key=stored.svid.private_key,
        bundle=_authorities(own),
        expires_at=int(stored.svid.expires_at),
        federated_bundles={bundle.trust_domain.name: _authorities(bundle) for bundle in others},
    )


def _metadata(entry: Entry) -> Sequence[str]:
    return sorted(selector.value for selector in entry.selectors)


def _authorities(bundle: Bundle) -> tuple[bytes, ...]:
    return tuple(authority.der for authority in bundle.x509_authorities)


def _is_malformed(error: SpireError) -> bool:
    return isinstance(error, InvalidArgument) or (isinstance(error, RpcError) and error.code is Code.INVALID_ARGUMENT)


def _fields(entry: Entry) -> dict[str, str]:
    return {"entry": entry.id, "spiffe_id": entry.spiffe_id, "svid_store": _store_of(entry)}
