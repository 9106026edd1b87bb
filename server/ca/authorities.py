"""The server's own authorities over their lives: restored, prepared, rotated, pruned, tainted, revoked.

Everything is made in an order in which a crash costs nothing: generate the key, sign its certificate, append it (or the
roots it stands below) to the bundle, write the journal, sign with it. Each step is durable before the next. A tainted
upstream authority is left before the bundle says so, because then everybody renews at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NoReturn

from identity import tainting
from identity.bundles import JwtAuthority
from operations import logs, metrics
from operations.errors import InvalidArgument, NotFound, SpireError
from plugins.keymanager import Key, KeyManager
from plugins.upstreamauthority import UpstreamAuthority
from server.ca import ca_certificate, conformance, journal, names, signing
from server.ca.alerts import Alerts
from server.ca.authority import JWT, WIT, TokenSigner, X509Ca
from server.ca.composing import Composers
from server.ca.journal import Journal, Status
from server.ca.operating import AuthorityInfo, info, infos, whole
from server.ca.restoring import Restoring, x509_key_id
from server.ca.rotation import Rotation, Slots, activation_threshold
from server.ca.settings import AuthorityStore, CaSettings
from server.ca.token_authorities import Making, TokenAuthorities
from server.ca.upstream import Upstream

# Authorities stay in the bundle this long after their end, for verifiers whose clocks are behind.
_PRUNE_AFTER = 24 * 3600
_PRUNE_INTERVAL = 6 * 3600
_ROTATE_INTERVAL = 10.0
# An authority of seconds, as in tests, is looked at more often, so that none of its sixths is missed.
_LOOKS_PER_LIFE = 60
# Seconds until a tainted upstream authority is tried to be left again, at first and at most: each try costs a key.
_TAINT_RETRY = 5.0
_TAINT_RETRY_MOST = 300.0

__all__ = ["Authorities", "AuthorityInfo", "infos"]

_log = logs.get("ca_manager")


class Authorities:
    """`x509` holds what signs now, and `jwt` and `wit` their rotations. `now` gives unix seconds."""

    def __init__(
        self,
        settings: CaSettings,
        key_manager: KeyManager,
        store: AuthorityStore,
        now: Callable[[], float],
        upstream: UpstreamAuthority | None,
        composers: Composers,
    ) -> None:
        self._settings = settings
        self._keys = key_manager
        self._store = store
        self._now = now
        self.failed_rotations = 0
        """In a row."""
        self._alerts = Alerts(now)
        self._uncertified: Key | None = None
        self._composers = composers
        self._upstream: Upstream | None = None
        if upstream is not None:
            self._upstream = Upstream(upstream, store, settings.trust_domain, now, self._upstream_tainted)
        self._tainted_upstream: dict[str, bytes] = {}
        self._tainted = asyncio.Event()
        self._listeners: list[Callable[[Sequence[bytes]], None]] = []
        lock = asyncio.Lock()
        self.x509: Rotation[X509Ca] = Rotation(
            "X509 CA", self._prepare_x509, self._save_x509, journal=lock, activated=self._tell_rotated
        )
        self.jwt = TokenAuthorities(
            JWT,
            Making(settings.jwt_key_type, settings.jwt_issuer, settings.ca_ttl),
            key_manager,
            store,
            now,
            enabled=not settings.disable_jwt_svids,
            publish=self._publish_jwt,
            save=self._save_jwt,
            journal=lock,
        )
        self.wit = TokenAuthorities(
            WIT,
            Making(settings.wit_key_type, settings.wit_issuer, settings.ca_ttl),
            key_manager,
            store,
            now,
            enabled=settings.wit_svids,
            publish=self._append_wit,
            save=self._save_wit,
            journal=lock,
        )

    @property
    def has_upstream(self) -> bool:
        return self._upstream is not None

    @property
    def overdue(self) -> bool:
        """Whether an authority that signs should have been replaced by now."""
        current = [rotation.slots.current for rotation in self._rotations()]
        return any(each is None or self._now() > activation_threshold(each) for each in current)

    async def start(self) -> None:
        """Go on with the journal's keys, and prepare what is missing.

        Raises Corrupt for a damaged journal, and what the key manager, the store and the upstream authority raise.
        """
        data = await self._store.load_journal()
        saved = journal.load(data) if data is not None else Journal()
        _log.info("Journal loaded", x509_cas=len(saved.x509), jwt_keys=len(saved.jwt), wit_keys=len(saved.wit))
        bundle = await self._store.bundle()
        restoring = Restoring(self._keys, bundle, self._now, upstream=self.has_upstream)
        self.x509.slots = await restoring.x509(saved)
        await self.jwt.restore(restoring, saved.jwt)
        await self.wit.restore(restoring, saved.wit)
        await self._republish()
        for rotation in self._rotations():
            rotation.tell_active()
        await self.rotate(starting=True)

    async def run(self) -> NoReturn:
        """Rotate, prune and listen to the upstream authority until cancelled. What fails is logged and tried again."""
        async with asyncio.TaskGroup() as tasks:
            if self._upstream is not None:
                tasks.create_task(self._upstream.subscribe())
            tasks.create_task(self._leave_tainted())
            await self._keep_rotating()

    @asynccontextmanager
    async def at_rest(self) -> AsyncGenerator[None]:
        """While it is held the keys that are used stay the same, and none is made."""
        async with AsyncExitStack() as turns:
            for rotation in (self.x509, self.jwt.rotation, self.wit.rotation):
                await turns.enter_async_context(rotation.at_rest())
            yield

    async def close(self) -> None:
        """Stop listening to the upstream authority."""
        if self._upstream is not None:
            await self._upstream.close()

    def on_tainted(self, listener: Callable[[Sequence[bytes]], None]) -> None:
        """Tell `listener` of X.509 authorities (DER) that are tainted from now on; whatever signs does so already
        with another."""
        self._listeners.append(listener)

    async def _keep_rotating(self) -> NoReturn:
        pruned_at = self._now()
        while True:
            await asyncio.sleep(min(_ROTATE_INTERVAL, self._shortest_life() / _LOOKS_PER_LIFE))
            await self.rotate()
            if self._now() - pruned_at >= _PRUNE_INTERVAL:
                pruned_at = self._now()
                await self._prune()

    async def rotate(self, *, starting: bool = False) -> None:
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
                self._alerts.failed(f"rotate {rotation.kind}", error)
            else:
                self._alerts.works(f"rotate {rotation.kind}")
        self._tell_lifetime(now)
        self.failed_rotations = self.failed_rotations + 1 if failed else 0

    def _shortest_life(self) -> float:
        """Seconds. An upstream authority may give less than it is asked for."""
        current = (rotation.slots.current for rotation in self._rotations())
        lives = (each.not_after - each.issued_at for each in current if each is not None)
        return max(1, min(lives, default=self._settings.ca_ttl))

    def _tell_lifetime(self, now: float) -> None:
        current = self.x509.slots.current
        if current is not None:
            labels = {"trust_domain_id": self._settings.trust_domain.name}
            metrics.gauge("manager", "x509_ca", "rotate", "expiration", value=current.not_after, **labels)
            metrics.gauge("manager", "x509_ca", "rotate", "ttl", value=current.not_after - now, **labels)

    def _rotations(self) -> Sequence[Rotation[X509Ca] | Rotation[TokenSigner]]:
        return (self.x509, *(each.rotation for each in (self.jwt, self.wit) if each.enabled))

    @metrics.timed("ca", "manager", "bundle", "prune")
    async def _prune(self) -> None:
        try:
            await self._store.prune(int(self._now()) - _PRUNE_AFTER)
        except SpireError as error:
            _log.error("Could not prune CA certificates", error=error)

    async def prepare_x509(self) -> AuthorityInfo:
        """Make the next X.509 authority now. Raises SpireError."""
        return info(await whole(self.x509.prepare()), Status.PREPARED)

    async def activate_x509(self, authority_id: str) -> AuthorityInfo:
        """Sign X509-SVIDs with the prepared authority. Raises SpireError, Refused for any other id."""
        return info(await whole(self.x509.activate(authority_id)), Status.ACTIVE)

    async def taint_x509(self, key_id: str) -> None:
        """Mark a root in the bundle as tainted, by its hex subject key identifier. Raises SpireError."""
        await whole(self._taint_x509(key_id))

    async def _taint_x509(self, key_id: str) -> None:
        bundle = await self._store.edit(lambda bundle: tainting.taint_x509(bundle, key_id))
        self._tell_tainted(
            [each.der for each in bundle.x509_authorities if tainting.subject_key_id(each.der) == key_id]
        )

    async def revoke_x509(self, key_id: str) -> None:
        """Take a tainted root out of the bundle. Raises SpireError."""
        await self._store.edit(lambda bundle: tainting.revoke_x509(bundle, key_id))

    async def publish_jwt_key(self, key: JwtAuthority) -> tuple[JwtAuthority, ...]:
        """Publish a JWT key, this server's or that of one below it, as far up as can be; returns the bundle's keys.

        Raises SpireError.
        """
        if self._upstream is None or not await self._upstream.publish(key):
            await self._store.append_jwt_authority(key)
        bundle = await self._store.bundle()
        return bundle.jwt_authorities if bundle is not None else ()

    @metrics.timed("ca", "manager", "x509_ca", "prepare")
    async def _prepare_x509(self, slot: str) -> X509Ca:
        settings = self._settings
        key = await self._new_x509_key(slot)
        issued_at = int(self._now())
        serial = signing.new_serial()
        content = await self._composers.x509_ca(names.authority_name(settings.subject, serial))
        if self._upstream is not None:
            csr = await ca_certificate.signing_request(key, settings.trust_domain, content)
            self._uncertified = key
            chain = await self._upstream.mint(key, csr, settings.ca_ttl)
            self._uncertified = None
            return X509Ca.of(slot, issued_at, key, chain[0], chain)
        life = ca_certificate.Life(issued_at, issued_at + settings.ca_ttl)
        certificate = await ca_certificate.self_signed(key, settings.trust_domain, content, serial, life)
        if self._composers:
            conformance.check_x509_ca(certificate, settings.trust_domain, signing.utc(issued_at))
        await self._store.append_x509_authority(certificate)
        return X509Ca.of(slot, issued_at, key, certificate)

    async def _new_x509_key(self, slot: str) -> Key:
        """One that no authority has: while the upstream authority is away, the next try takes that of the last."""
        key, self._uncertified = self._uncertified, None
        if key is not None and key.id == x509_key_id(slot):
            return key
        return await self._keys.generate(x509_key_id(slot), self._settings.ca_key_type)

    async def _publish_jwt(self, signer: TokenSigner) -> None:
        await self.publish_jwt_key(signer.jwt_authority())

    async def _append_jwt(self, signer: TokenSigner) -> None:
        await self._store.append_jwt_authority(signer.jwt_authority())

    async def _append_wit(self, signer: TokenSigner) -> None:
        """SPIRE has no way yet to publish WIT keys to an upstream authority."""
        await self._store.append_wit_authority(signer.wit_authority())

    def _upstream_tainted(self, roots: Sequence[bytes]) -> None:
        for root in roots:
            key_id = tainting.subject_key_id(root)
            if key_id not in self._tainted_upstream:
                _log.info("X.509 authority tainted", subject_key_id=key_id)
            self._tainted_upstream[key_id] = root
        self._tainted.set()

    async def _leave_tainted(self) -> NoReturn:
        """Replace what tainted upstream authorities signed, as they become known, then pass the news on."""
        wait = _TAINT_RETRY
        while True:
            await self._tainted.wait()
            try:
                await self._leave(dict(self._tainted_upstream))
                wait = _TAINT_RETRY
            except SpireError as error:
                _log.warning("Failed to process tainted keys on upstream authority", error=error)
                await asyncio.sleep(wait)
                wait = min(2 * wait, _TAINT_RETRY_MOST)

    async def _leave(self, tainted: Mapping[str, bytes]) -> None:
        _log.debug("Processing tainted keys on upstream authority")
        roots = tuple(tainted.values())

        def distrusted(authority: X509Ca) -> bool:
            return tainting.is_signed_by(authority.chain, roots)

        current = self.x509.slots.current
        if current is not None and distrusted(current):
            _log.info("Current root CA is signed by a tainted upstream authority, preparing rotation")
        await self.x509.replace(distrusted)
        for key_id, root in tainted.items():
            try:
                await self.taint_x509(key_id)
            except InvalidArgument:
                self._tell_tainted([root])  # marked already, by an operator or by a server that shares the database
            except NotFound:
                _log.debug("A tainted upstream authority is not in the bundle any more", subject_key_id=key_id)
            del self._tainted_upstream[key_id]
        if not self._tainted_upstream:
            self._tainted.clear()

    def _tell_tainted(self, roots: Sequence[bytes]) -> None:
        for listener in self._listeners:
            listener(roots)

    def _tell_rotated(self, authority: X509Ca) -> None:
        trust_domain = self._settings.trust_domain.id
        ttl = authority.not_after - self._now()
        _log.debug("Successfully rotated X.509 CA", trust_domain_id=trust_domain, ttl=ttl)

    async def _republish(self) -> None:
        """Have the bundle hold what signs and what is about to, whatever database was restored meanwhile."""
        for x509_ca, status in self.x509.slots.with_status():
            if status is not Status.OLD and not x509_ca.upstream_chain:
                await self._store.append_x509_authority(x509_ca.certificate)
        await self.jwt.republish(self._append_jwt)
        await self.wit.republish(self._append_wit)

    async def _save_x509(self, slots: Slots[X509Ca]) -> None:
        await self._save(x509=slots)

    async def _save_jwt(self, slots: Slots[TokenSigner]) -> None:
        await self._save(jwt=slots)

    async def _save_wit(self, slots: Slots[TokenSigner]) -> None:
        await self._save(wit=slots)

    async def _save(
        self,
        *,
        x509: Slots[X509Ca] | None = None,
        jwt: Slots[TokenSigner] | None = None,
        wit: Slots[TokenSigner] | None = None,
    ) -> None:
        """What is given is what will be; the rest stays."""
        records = Journal(
            x509=tuple(x509_ca.record(status) for x509_ca, status in (x509 or self.x509.slots).with_status()),
            jwt=self.jwt.records(jwt),
            wit=self.wit.records(wit),
        )
        await self._store.save_journal(journal.dump(records))
