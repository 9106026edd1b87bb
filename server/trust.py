"""The trust bundles, remembered: every call of a caller with a certificate rests on one, and they seldom change."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from identity.bundles import Bundle
from identity.spiffeid import TrustDomain
from operations.errors import NotFound, TemporarilyUnavailable
from server.datastore.records import Changes
from server.datastore.store import DataStore

MAX_AGE = 1.0
"""Seconds after which another server's change of a bundle is looked for."""

OUTAGE = 3600.0
"""Seconds for which bundles are remembered while the datastore is away: agents and their workloads go on meanwhile, by
the index of entries and the keys, which need no datastore."""

MAX_BUNDLES = 1024


@dataclass(slots=True)
class _Known:
    """A bundle, and when (loop time) it was read and last asked for. `current` until it is known to have changed."""

    bundle: Bundle
    roots: Sequence[bytes]
    read_at: float
    asked_at: float
    current: bool


class TrustBundles:
    """Bundles of the datastore, at most a second old, and never behind a change that this server acknowledged."""

    def __init__(self, store: DataStore) -> None:
        self._store = store
        self._known: dict[TrustDomain, _Known] = {}
        self._changes = 0
        store.subscribe(self._apply)

    async def get(self, trust_domain: TrustDomain) -> Bundle | None:
        known = await self._current(trust_domain)
        return None if known is None else known.bundle

    async def roots(self, trust_domain: TrustDomain) -> Sequence[bytes]:
        """The X.509 authorities, DER; the same object as long as they are the same. Raises NotFound."""
        known = await self._current(trust_domain)
        if known is None:
            raise NotFound(f'no bundle found for trust domain "{trust_domain}"')
        return known.roots

    async def _current(self, trust_domain: TrustDomain) -> _Known | None:
        now = asyncio.get_running_loop().time()
        known = self._known.get(trust_domain)
        if known is not None and known.current and now - known.asked_at < MAX_AGE:
            return known
        changes = self._changes
        try:
            bundle = await self._store.get_bundle(trust_domain)
        except TemporarilyUnavailable:
            if known is None or not known.current or now - known.read_at >= OUTAGE:
                raise
            known.asked_at = asyncio.get_running_loop().time()
            return known
        if bundle is None:
            self._known.pop(trust_domain, None)
            return None
        roots: Sequence[bytes] = tuple(authority.der for authority in bundle.x509_authorities)
        if known is not None and known.roots == roots:
            roots = known.roots
        # A change that came meanwhile may have made this an old answer: good for its caller, not for the next.
        found = _Known(bundle, roots, now, now, current=changes == self._changes)
        if trust_domain in self._known or len(self._known) < MAX_BUNDLES:
            self._known[trust_domain] = found
        return found

    def _apply(self, changes: Changes) -> None:
        for name in changes.bundles:
            self._changes += 1
            known = self._known.get(TrustDomain(name))
            if known is not None:
                known.current = False
