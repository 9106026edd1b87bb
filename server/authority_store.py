"""Where the certificate authority keeps its journal and publishes its authorities: the datastore."""

from __future__ import annotations

from collections.abc import Callable

from identity.bundles import Bundle, JwtAuthority, WitAuthority, X509Authority
from identity.spiffeid import TrustDomain
from operations.errors import NotFound
from server.datastore.store import DataStore


class DatastoreAuthorities:
    """The AuthorityStore of server.ca on a DataStore, for one trust domain."""

    def __init__(self, store: DataStore, trust_domain: TrustDomain) -> None:
        self._store = store
        self._trust_domain = trust_domain

    async def load_journal(self) -> bytes | None:
        return await self._store.get_ca_journal()

    async def save_journal(self, data: bytes) -> None:
        await self._store.set_ca_journal(data)

    async def bundle(self) -> Bundle | None:
        return await self._store.get_bundle(self._trust_domain)

    async def edit(self, change: Callable[[Bundle], Bundle]) -> Bundle:
        """In one transaction, but for the very first bundle."""
        try:
            return await self._store.edit_bundle(self._trust_domain, change)
        except NotFound:
            if await self.bundle() is not None:
                raise  # what was looked for in the bundle
        return await self._store.append_bundle(change(Bundle(self._trust_domain)))

    async def append_x509_authority(self, der: bytes) -> None:
        """Publish a root before anything is signed under it."""
        await self._store.append_bundle(Bundle(self._trust_domain, x509_authorities=(X509Authority(der),)))

    async def append_jwt_authority(self, authority: JwtAuthority) -> None:
        await self._store.append_bundle(Bundle(self._trust_domain, jwt_authorities=(authority,)))

    async def append_wit_authority(self, authority: WitAuthority) -> None:
        await self._store.append_bundle(Bundle(self._trust_domain, wit_authorities=(authority,)))

    async def prune(self, expires_before: int) -> None:
        """Drop the authorities that ended before that time (unix seconds)."""
        await self._store.prune_bundle(self._trust_domain, expires_before)
