"""Authorities out of the journal, at the start of a process: which of them can and may still sign."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from identity import der
from identity.bundles import Bundle
from identity.tainting import is_signed_by
from operations import logs
from operations.errors import NotFound
from plugins.keymanager import Key, KeyManager
from server.ca import signing
from server.ca.authority import TokenKind, TokenSigner, X509Ca
from server.ca.journal import Journal, Status, TokenRecord, X509Record
from server.ca.jwt import TokenEncoder
from server.ca.rotation import Slots, restored

_log = logs.get("ca_manager")


class Restoring:
    """Measures records by the keys that are there and by the bundle, None before the first.

    A key store that is away raises; that its keys cannot be asked for does not mean that they are lost.
    """

    def __init__(self, keys: KeyManager, bundle: Bundle | None, now: Callable[[], float], *, upstream: bool) -> None:
        """`upstream` says whether an upstream authority is configured."""
        self._keys = keys
        self._now = now
        self._upstream = upstream
        self._bundle = bundle
        x509 = bundle.x509_authorities if bundle is not None else ()
        self._published = {each.der for each in x509}
        self._tainted = tuple(each.der for each in x509 if each.tainted)

    async def x509(self, journal: Journal) -> Slots[X509Ca]:
        return restored([(record.status, await self._x509(record)) for record in journal.x509])

    async def tokens(self, kind: TokenKind, records: Sequence[TokenRecord], issuer: str) -> Slots[TokenSigner]:
        return restored([(record.status, await self._token(kind, record, issuer)) for record in records])

    async def _x509(self, record: X509Record) -> X509Ca | None:
        public_key = der.certificate_key(record.certificate)
        key = await self._key(x509_key_id(record.slot), public_key, record, self._x509_fault(record), "X509CA")
        if key is None:
            return None
        return X509Ca.of(record.slot, record.issued_at, key, record.certificate, record.upstream_chain)

    async def _token(self, kind: TokenKind, record: TokenRecord, issuer: str) -> TokenSigner | None:
        fault = self._token_fault(kind, record)
        key = await self._key(kind.key_id(record.slot), record.public_key, record, fault, kind.name)
        if key is None:
            return None
        encoder = TokenEncoder(key, record.key_id, issuer, kind.header_type)
        return TokenSigner(record.slot, record.issued_at, record.not_after, record.key_id, key, encoder)

    def _x509_fault(self, record: X509Record) -> str:
        if record.upstream_chain and not self._upstream:
            return "no upstream authority is configured any more"
        if record.status is Status.OLD:
            revoked = not record.upstream_chain and record.certificate not in self._published
            return "not in the bundle any more" if revoked else ""
        chain = record.upstream_chain or (record.certificate,)
        return "signed by a tainted authority" if is_signed_by(chain, self._tainted) else ""

    def _token_fault(self, kind: TokenKind, record: TokenRecord) -> str:
        published = {each.key_id: each for each in kind.published(self._bundle)}
        found = published.get(record.key_id)
        if record.status is Status.OLD:
            return "" if found is not None else "not in the bundle any more"
        return "tainted" if found is not None and found.tainted else ""

    async def _key(
        self, key_id: str, public_key: bytes, record: X509Record | TokenRecord, fault: str, what: str
    ) -> Key | None:
        """The key of a record, or None, with a warning, when it cannot, or must not, sign for it any more."""
        key = None
        reason = "slot expired" if record.not_after <= self._now() else fault
        if not reason:
            try:
                key = await self._keys.get(key_id)
            except NotFound:
                reason = "no key manager key"
            else:
                if der.public_key(key.public_key) != der.public_key(public_key):
                    reason = "public key does not match key manager key"
        if not reason:
            return key
        _log.warning(
            f"{what} slot unusable",
            error=reason,
            slot=record.slot,
            status=record.status.value,
            issued_at=signing.utc(record.issued_at),
        )
        return None


def x509_key_id(slot: str) -> str:
    return f"x509-CA-{slot}"
