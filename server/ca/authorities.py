"""The server's own authorities over their lives: restored, prepared, rotated, pruned.

Everything is made in an order in which a crash costs nothing: generate the key, sign its certificate, append it to the
bundle, write the journal, sign with it. Each step is durable before the next.
"""

from __future__ import annotations

import asyncio
import secrets
import string
from collections.abc import Callable, Sequence
from typing import NoReturn

from identity import der
from operations import logs, metrics
from operations.errors import NotFound, SpireError
from plugins.keymanager import Key, KeyManager
from server.ca import authority, journal, signing
from server.ca.authority import JwtSigner, X509Ca
from server.ca.journal import Journal, JwtRecord, Status, X509Record
from server.ca.jwt import JwtEncoder
from server.ca.rotation import Rotation, Slots, restored
from server.ca.settings import AuthorityStore, CaSettings

# Authorities stay in the bundle this long after their end, for verifiers whose clocks are behind.
_PRUNE_AFTER = 24 * 3600
_PRUNE_INTERVAL = 6 * 3600
_ROTATE_INTERVAL = 10.0
# An authority of seconds, as in tests, is looked at more often, so that none of its sixths is missed.
_LOOKS_PER_LIFE = 60

_KEY_ID_LENGTH = 32
_KEY_ID_LETTERS = string.ascii_letters + string.digits

_log = logs.get("ca_manager")


class Authorities:
    """`x509` and `jwt` hold what signs now. `now` gives unix seconds."""

    def __init__(
        self, settings: CaSettings, key_manager: KeyManager, store: AuthorityStore, now: Callable[[], float]
    ) -> None:
        self._settings = settings
        self._keys = key_manager
        self._store = store
        self._now = now
        self.failed_rotations = 0
        """In a row."""
        self.x509: Rotation[X509Ca] = Rotation("X509 CA", self._prepare_x509, self._save_x509)
        self.jwt: Rotation[JwtSigner] = Rotation("JWT key", self._prepare_jwt, self._save_jwt)

    async def start(self) -> None:
        """Go on with the journal's keys, and prepare what is missing.

        Raises Corrupt for a damaged journal, and what the key manager and the store raise.
        """
        data = await self._store.load_journal()
        saved = journal.load(data) if data is not None else Journal()
        _log.info("Journal loaded", x509_cas=len(saved.x509), jwt_keys=len(saved.jwt))
        x509_cas = [(record.status, await self._restore_x509(record)) for record in saved.x509]
        jwt_signers = [(record.status, await self._restore_jwt(record)) for record in saved.jwt]
        self.x509.slots = restored(x509_cas)
        self.jwt.slots = restored(jwt_signers)
        await self._republish()
        for rotation in self._rotations():
            rotation.tell_active()
        await self._rotate(starting=True)

    async def run(self) -> NoReturn:
        """Rotate and prune until cancelled. What fails is logged and tried again."""
        interval = min(_ROTATE_INTERVAL, self._settings.ca_ttl / _LOOKS_PER_LIFE)
        pruned_at = self._now()
        while True:
            await asyncio.sleep(interval)
            await self._rotate()
            if self._now() - pruned_at >= _PRUNE_INTERVAL:
                pruned_at = self._now()
                await self._prune()

    async def _rotate(self, *, starting: bool = False) -> None:
        """Do what is due. A start fails for what keeps it from issuing, and only for that."""
        now = self._now()
        failed = 0
        for rotation in self._rotations():
            try:
                await rotation.advance(now)
            except SpireError as error:
                failed = 1
                if starting and not rotation.slots.can_sign(now):
                    raise
                _log.error(f"Unable to rotate {rotation.kind}", error=error)
        self._tell_lifetime(now)
        self.failed_rotations = self.failed_rotations + 1 if failed else 0

    def _tell_lifetime(self, now: float) -> None:
        current = self.x509.slots.current
        if current is not None:
            labels = {"trust_domain_id": self._settings.trust_domain.name}
            metrics.gauge("manager", "x509_ca", "rotate", "expiration", value=current.not_after, **labels)
            metrics.gauge("manager", "x509_ca", "rotate", "ttl", value=current.not_after - now, **labels)

    def _rotations(self) -> Sequence[Rotation[X509Ca] | Rotation[JwtSigner]]:
        return (self.x509,) if self._settings.disable_jwt_svids else (self.x509, self.jwt)

    @metrics.timed("ca", "manager", "bundle", "prune")
    async def _prune(self) -> None:
        try:
            await self._store.prune(int(self._now()) - _PRUNE_AFTER)
        except SpireError as error:
            _log.error("Could not prune CA certificates", error=error)

    @metrics.timed("ca", "manager", "x509_ca", "prepare")
    async def _prepare_x509(self, slot: str) -> X509Ca:
        key = await self._keys.generate(_x509_key_id(slot), self._settings.ca_key_type)
        issued_at = int(self._now())
        certificate = await authority.self_signed_certificate(
            key, self._settings.trust_domain, self._settings.subject, issued_at, issued_at + self._settings.ca_ttl
        )
        await self._store.append_x509_authority(certificate)
        return X509Ca.of(slot, issued_at, key, certificate)

    @metrics.timed("ca", "manager", "jwt_key", "prepare")
    async def _prepare_jwt(self, slot: str) -> JwtSigner:
        key = await self._keys.generate(_jwt_key_id(slot), self._settings.jwt_key_type)
        issued_at = int(self._now())
        key_id = "".join(secrets.choice(_KEY_ID_LETTERS) for _ in range(_KEY_ID_LENGTH))
        signer = self._jwt_signer(slot, issued_at, issued_at + self._settings.ca_ttl, key, key_id)
        await self._store.append_jwt_authority(signer.bundle_entry())
        return signer

    def _jwt_signer(self, slot: str, issued_at: int, not_after: int, key: Key, key_id: str) -> JwtSigner:
        encoder = JwtEncoder(key, key_id, self._settings.jwt_issuer)
        return JwtSigner(slot, issued_at, not_after, key_id, key, encoder)

    async def _restore_x509(self, record: X509Record) -> X509Ca | None:
        public_key = der.certificate_key(record.certificate)
        key = await self._usable_key(_x509_key_id(record.slot), public_key, record, "X509CA slot unusable")
        if key is None:
            return None
        return X509Ca.of(record.slot, record.issued_at, key, record.certificate, record.upstream_chain)

    async def _restore_jwt(self, record: JwtRecord) -> JwtSigner | None:
        key = await self._usable_key(_jwt_key_id(record.slot), record.public_key, record, "JWT key slot unusable")
        if key is None:
            return None
        return self._jwt_signer(record.slot, record.issued_at, record.not_after, key, record.key_id)

    async def _usable_key(
        self, key_id: str, public_key: bytes, record: X509Record | JwtRecord, warning: str
    ) -> Key | None:
        """The key of a journal record, or None, with a warning, when it cannot sign for it any more.

        A key store that is away raises; that its keys cannot be asked for does not mean that they are lost.
        """
        reason = ""
        key = None
        if record.not_after <= self._now():
            reason = "slot expired"
        else:
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
            warning,
            error=reason,
            slot=record.slot,
            status=record.status.value,
            issued_at=signing.utc(record.issued_at),
        )
        return None

    async def _republish(self) -> None:
        """Have the bundle hold what signs and what is about to, whatever database was restored meanwhile."""
        for x509_ca, status in self.x509.slots.with_status():
            if status is not Status.OLD and not x509_ca.upstream_chain:
                await self._store.append_x509_authority(x509_ca.certificate)
        for signer, status in self.jwt.slots.with_status():
            if status is not Status.OLD:
                await self._store.append_jwt_authority(signer.bundle_entry())

    async def _save_x509(self, slots: Slots[X509Ca]) -> None:
        await self._save(slots, self.jwt.slots)

    async def _save_jwt(self, slots: Slots[JwtSigner]) -> None:
        await self._save(self.x509.slots, slots)

    async def _save(self, x509: Slots[X509Ca], jwt: Slots[JwtSigner]) -> None:
        records = Journal(
            x509=tuple(x509_ca.record(status) for x509_ca, status in x509.with_status()),
            jwt=tuple(signer.record(status) for signer, status in jwt.with_status()),
        )
        await self._store.save_journal(journal.dump(records))


def _x509_key_id(slot: str) -> str:
    return f"x509-CA-{slot}"


def _jwt_key_id(slot: str) -> str:
    return f"JWT-Signer-{slot}"
