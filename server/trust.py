"""The X.509 authorities that callers are verified with, read from the datastore at most once a second."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from identity.spiffeid import TrustDomain
from operations.errors import NotFound
from server.datastore.records import Changes
from server.datastore.store import DataStore

MAX_AGE = 1.0
"""Seconds after which another server's change of the bundle is looked for."""


class TrustRoots:
    """Roots by trust domain. The same sequence is returned as long as the bundle says the same."""

    def __init__(self, store: DataStore) -> None:
        self._store = store
        self._known: dict[TrustDomain, tuple[Sequence[bytes], float]] = {}
        store.subscribe(self._apply)

    async def of(self, trust_domain: TrustDomain) -> Sequence[bytes]:
        """DER certificates. Raises NotFound for a trust domain without a bundle."""
        now = asyncio.get_running_loop().time()
        known = self._known.get(trust_domain)
        if known is not None and now - known[1] < MAX_AGE:
            return known[0]
        bundle = await self._store.get_bundle(trust_domain)
        if bundle is None:
            self._known.pop(trust_domain, None)
            raise NotFound(f'no bundle found for trust domain "{trust_domain}"')
        roots: Sequence[bytes] = tuple(authority.der for authority in bundle.x509_authorities)
        if known is not None and known[0] == roots:
            roots = known[0]
        self._known[trust_domain] = (roots, now)
        return roots

    def _apply(self, changes: Changes) -> None:
        for name in changes.bundles:
            known = self._known.get(TrustDomain(name))
            if known is not None:
                self._known[TrustDomain(name)] = (known[0], float("-inf"))
