"""The trust bundles, remembered: every call of a caller with a certificate rests on one, and they seldom change."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from identity.bundles import Bundle
from identity.spiffeid import TrustDomain
from operations.errors import NotFound
from server.datastore.records import Changes
from server.datastore.store import DataStore

MAX_AGE = 1.0
"""Seconds after which another server's change of a bundle is looked for."""

MAX_BUNDLES = 1024


class TrustBundles:
    """Bundles of the datastore, at most a second old, and never behind a change that this server acknowledged."""

    def __init__(self, store: DataStore) -> None:
        self._store = store
        self._known: dict[TrustDomain, tuple[Bundle, Sequence[bytes], float]] = {}
        self._changes = 0
        store.subscribe(self._apply)

    async def get(self, trust_domain: TrustDomain) -> Bundle | None:
        known = await self._current(trust_domain)
        return None if known is None else known[0]

    async def roots(self, trust_domain: TrustDomain) -> Sequence[bytes]:
        """The X.509 authorities, DER; the same object as long as they are the same. Raises NotFound."""
        known = await self._current(trust_domain)
        if known is None:
            raise NotFound(f'no bundle found for trust domain "{trust_domain}"')
        return known[1]

    async def _current(self, trust_domain: TrustDomain) -> tuple[Bundle, Sequence[bytes]] | None:
        now = asyncio.get_running_loop().time()
        known = self._known.get(trust_domain)
        if known is not None and now - known[2] < MAX_AGE:
            return known[:2]
        changes = self._changes
        bundle = await self._store.get_bundle(trust_domain)
        if bundle is None:
            self._known.pop(trust_domain, None)
            return None
        roots: Sequence[bytes] = tuple(authority.der for authority in bundle.x509_authorities)
        if known is not None and known[1] == roots:
            roots = known[1]
        # A change that came meanwhile may have made this an old answer: good for its caller, not for the next.
        read_at = now if changes == self._changes else float("-inf")
        if trust_domain in self._known or len(self._known) < MAX_BUNDLES:
            self._known[trust_domain] = (bundle, roots, read_at)
        return bundle, roots

    def _apply(self, changes: Changes) -> None:
        for name in changes.bundles:
            self._changes += 1
            known = self._known.get(TrustDomain(name))
            if known is not None:
                self._known[TrustDomain(name)] = (known[0], known[1], float("-inf"))
