"""Keeps everything in step with the server: entries, bundles, the workloads' SVIDs and the agent's own."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from agent.backoff import Backoff
from agent.cache import X509Cache
from agent.denial import (
    BANNED,
    EVICTED,
    NOT_AGAIN,
    STRANGER,
    MustRebootstrap,
    Unwelcome,
    is_banned,
    is_superseded,
    is_unknown_authority,
    must_reattest,
)
from agent.identity import AgentSvid
from agent.issuance import Issuer
from agent.jwt_cache import JwtCache
from agent.jwt_svids import JwtSvids
from agent.outage import Outage
from agent.own_svid import Expired, OwnSvid
from agent.rotation import RotationStrategy
from agent.server_client import TIMEOUT, ServerClient
from agent.startup import Begun, Start
from agent.store.content import Held
from agent.store.keeper import Keeper
from agent.svid_stores import SIZE, SvidStores
from agent.sync import DEFAULT_INTERVAL, SYNC, Synchroniser
from agent.tasks import until_first
from identity.bundles import Bundle
from identity.tainting import is_signed_by, subject_key_id
from operations import logs, sdnotify
from operations.errors import SpireError, TemporarilyUnavailable
from plugins.keymanager import Key, KeyManager, KeyType
from plugins.svidstore import SvidStore

_log = logs.get("manager")

_RETRY_INTERVAL = 5.0

HEAD_START = 3.0
"""Seconds that the server has for its first answer, when there is something to serve without it."""

_LAST_WRITE = 5.0


@dataclass(frozen=True, slots=True)
class Settings:
    """Times are in seconds; a size of 0 is the default one."""

    sync_interval: float = DEFAULT_INTERVAL
    sync_by_revision: bool = True
    workload_key_type: KeyType = KeyType.EC_P256
    strategy: RotationStrategy = field(default_factory=RotationStrategy)
    x509_cache_size: int = 0
    jwt_cache_size: int = 0
    jwt_hit_timeout: float = TIMEOUT


class Manager:
    """`stores` are the SVIDStores by name."""

    def __init__(
        self, settings: Settings, start: Start, begun: Begun, stores: Mapping[str, SvidStore] | None = None
    ) -> None:
        found = begun.attestation
        self._held = begun.held
        self._start = start
        self._storage = start.storage
        self._version = ""
        self._posted = False
        self._tainted_x509: frozenset[bytes] = frozenset()
        self._tainted_jwt: frozenset[str] = frozenset()
        self.jwt_cache = JwtCache(settings.jwt_cache_size)
        self.cache = X509Cache(found.bundle, size=settings.x509_cache_size, wanted=self._on_wanted)
        self.outage = Outage(self._on_outage)
        self._client = ServerClient(start.address, found.svid, self._authorities)
        key_type, strategy = settings.workload_key_type, settings.strategy
        self._issuer = Issuer(self._client, self.cache, key_type, strategy, self.outage)
        self._stores: SvidStores | None = None
        self.to_store: X509Cache | None = None
        self._storing: Issuer | None = None
        if stores:
            self.to_store = X509Cache(found.bundle, size=SIZE, wanted=self._on_wanted)
            self._storing = Issuer(self._client, self.to_store, key_type, strategy)
            self._stores = SvidStores(self.to_store, stores)
        self._own = OwnSvid(self._client, start, self._authorities, strategy, self._tolerates_stranger)
        self._sync = Synchroniser(
            self._client,
            self.cache,
            self._on_bundle,
            to_store=self.to_store,
            interval=settings.sync_interval,
            by_revision=settings.sync_by_revision,
            tolerates_stranger=self._tolerates_stranger,
            outage=self.outage,
        )
        self.jwt_svids = JwtSvids(
            self._client, self.jwt_cache, lambda: self.outage.now, hit_timeout=settings.jwt_hit_timeout
        )
        self._keeper = Keeper(start.store, lambda: self.svid.spiffe_id, self._to_keep)

    async def initialise(self, version: str) -> None:
        """Store what the attestation gave and synchronise once, trying for as long as a start may take.

        With something to serve from the last run, the server need not answer now. Raises RpcError and Refused. With
        Unwelcome the stored SVID is gone, so that the next start attests anew.
        """
        self._version = version
        await self._own.store()
        await self._store_bundle(self.cache.bundle)
        if self._held is not None:
            self._resume(self._held)
        if self._own.is_expired:
            self.outage.failed(SYNC, Expired("the agent's own SVID has expired"))
            return
        backoff = Backoff(_RETRY_INTERVAL, budget=self._start.trust.budget)
        wait = await self._first_synchronisation(backoff)
        while wait is not None:
            await asyncio.sleep(wait)
            wait = await self._first_synchronisation(backoff)

    async def _first_synchronisation(self, backoff: Backoff) -> float | None:
        """Seconds until it is to be tried again, None to go on."""
        try:
            async with asyncio.timeout(None if self._held is None else HEAD_START):
                await self._sync.synchronise()
                return None
        except TimeoutError:
            self.outage.failed(SYNC, TemporarilyUnavailable("the server is slow to answer"))
            return None
        except SpireError as error:
            if is_superseded(error) and self.svid.reattestable:
                # A kill came after the server had seen the next SVID, and before this agent had it on its disk.
                _log.warning("Agent needs to re-attest; will attempt to re-attest", error=error)
                await self._reattest()
                return backoff.next() or _RETRY_INTERVAL
            if must_reattest(error) or is_banned(error):
                state = "is banned" if is_banned(error) else "needs to re-attest"
                _log.error(f"Agent {state}: removing SVID and shutting down", error=error)
                await self._forget()
                raise Unwelcome(BANNED if is_banned(error) else EVICTED) from error
            stranger = is_unknown_authority(error)
            tolerated = stranger and await self._tolerates_stranger()
            if self._held is not None and (tolerated or not stranger):
                self.outage.failed(SYNC, error)
                return None
            wait = backoff.next()
            if wait is None:
                if stranger:
                    raise Unwelcome(STRANGER) from error
                raise
            _log.warning("Failed to initialize manager", error=error, retry_interval=f"{wait:.1f}s")
            return wait

    def _resume(self, held: Held) -> None:
        """Serve what the last run left. The first synchronisation takes away what the server has removed since."""
        own = self.cache.bundle
        bundles = {**held.bundles, own.trust_domain.name: held.bundle_with(own)}
        self.cache.set_bundles(bundles)
        self.cache.set_entries(held.entries.values(), ())
        self.cache.store(held.x509_svids)
        for of, token in held.jwt_svids.items():
            self.jwt_cache.put(of, token)
        self._sync.resume(held.entries)
        _log.info(
            "Serving what was kept from the last run",
            entries=len(held.entries),
            x509_svids=len(held.x509_svids),
            jwt_svids=len(held.jwt_svids),
        )

    def _to_keep(self) -> Held | None:
        """What the server has confirmed in this run; before that, the store has better."""
        if not self._sync.last_success:
            return None
        bundles = {**self._sync.bundles, self.cache.bundle.trust_domain.name: self.cache.bundle}
        return Held(dict(self.cache.entries()), dict(self.cache.svids()), self.jwt_cache.svids(), bundles)

    async def _post_status(self, version: str) -> None:
        try:
            await self._client.post_status(version)
        except SpireError as error:
            _log.error("Failed to post agent status", agent_version=version, error=error)

    async def run(self) -> None:
        """Until cancelled. Raises SpireError classes when the agent cannot go on."""
        while True:
            try:
                if self._own.is_expired:
                    await self._own.regain()
                await until_first(*self._work())
            except Expired as error:
                _log.warning("The agent's SVID has expired; serving on, and attesting anew", error=error)
            except SpireError as error:
                if is_banned(error):
                    _log.warning("Agent is banned: removing SVID and shutting down", error=error)
                    await self._forget()
                    raise Unwelcome(BANNED) from error
                if is_unknown_authority(error):
                    raise Unwelcome(STRANGER) from error
                if not must_reattest(error):
                    raise
                _log.warning("Agent needs to re-attest; will attempt to re-attest", error=error)
                await self._reattest()

    def _work(self) -> Iterator[Coroutine[Any, Any, None]]:
        yield from (self._sync.run(), self._issuer.run(), self._own.run(), self._keeper.run())
        if self._stores is not None and self._storing is not None:
            yield from (self._storing.run(), self._stores.run())

    async def _reattest(self) -> None:
        try:
            self._own.require_reattestable()
            await self._own.regain()
        except SpireError as error:
            _log.error("Agent failed re-attestation; removing SVID and shutting down", error=error)
            await self._forget()
            raise Unwelcome(f"{NOT_AGAIN}: {error}" if self.svid.reattestable else EVICTED) from error

    async def _forget(self) -> None:
        """The agent is not welcome: its next start attests anew, and serves nothing before."""
        await self._own.forget()
        await self._drop_kept()

    async def _tolerates_stranger(self) -> bool:
        try:
            return await self._start.trust.tolerates_stranger()
        except MustRebootstrap:
            await self._drop_kept()  # what the lost authorities signed
            raise

    async def _drop_kept(self) -> None:
        self._keeper.stop()
        await self._start.store.drop()

    async def close(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WRITE):
                await self._keeper.keep()
        for issuer in (self._issuer, self._storing):
            if issuer is not None:
                issuer.close()
        await self._client.close()

    @property
    def svid(self) -> AgentSvid:
        """The agent's own."""
        return self._own.current

    @property
    def keys(self) -> KeyManager:
        return self._start.keys

    @property
    def next_key(self) -> Key | None:
        """The key that the agent's next SVID will be for, while the server has not certified it."""
        return self._own.next_key

    @property
    def jwt_svid_count(self) -> int:
        return len(self.jwt_cache)

    @property
    def last_sync(self) -> float:
        """When the server last told everything, in Unix seconds; 0 before."""
        return self._sync.last_success

    def _authorities(self) -> tuple[bytes, ...]:
        return _authorities(self.cache.bundle)

    def _on_wanted(self) -> None:
        for issuer in (self._issuer, self._storing):
            if issuer is not None:
                issuer.want()

    def _on_outage(self, now: bool) -> None:
        self.cache.settle_for_less(now)
        sdnotify.starting(self.status)

    @property
    def status(self) -> str:
        """A line for `systemctl status`."""
        line = f"Serving the Workload API as {self.svid.spiffe_id}"
        if not self.outage.now:
            return line
        kept = "" if self._sync.last_success else ", from what was kept before the restart"
        return f"{line}{kept}; the server is away"

    async def _on_bundle(self, bundle: Bundle) -> None:
        await self._start.trust.confirmed()
        if _authorities(bundle) != self._storage.state.bundle:
            await self._store_bundle(bundle)
        await self._renew_tainted_x509(bundle)
        self._drop_tainted_jwt(bundle)
        if not self._posted:
            await self._post_status(self._version)
            self._posted = True

    async def _store_bundle(self, bundle: Bundle) -> None:
        try:
            await asyncio.to_thread(self._storage.store_bundle, _authorities(bundle))
        except OSError as error:
            _log.error("Could not store bundle", error=error)

    async def _renew_tainted_x509(self, bundle: Bundle) -> None:
        tainted = frozenset(each.der for each in bundle.x509_authorities if each.tainted)
        fresh = tainted - self._tainted_x509
        if not fresh:
            self._tainted_x509 = tainted
            return
        _log.debug("New tainted X.509 authorities found", subject_key_ids=",".join(map(subject_key_id, fresh)))
        for cache in (self.cache, self.to_store):
            if cache is not None:
                await _renew_signed_by(fresh, cache)
        if is_signed_by(self._own.current.chain, fresh):
            _log.info("Agent SVID is tainted by a root authority, forcing rotation")
            self._own.renew_now()
        # Last: what is cancelled before is done again.
        self._tainted_x509 = tainted

    def _drop_tainted_jwt(self, bundle: Bundle) -> None:
        tainted = frozenset(each.key_id for each in bundle.jwt_authorities if each.tainted)
        fresh, self._tainted_jwt = tainted - self._tainted_jwt, tainted
        if fresh:
            _log.debug("New tainted JWT authorities found", jwt_authority_key_ids=",".join(fresh))
            if dropped := self.jwt_cache.drop_signed_by(fresh):
                _log.info(
                    "JWT-SVIDs were removed from the JWT cache because they were issued by a tainted authority",
                    tainted_jwt_svids=dropped,
                    jwt_authority_key_ids=",".join(fresh),
                )


async def _renew_signed_by(authorities: frozenset[bytes], cache: X509Cache) -> None:
    chains = {entry_id: svid.chain for entry_id, svid in cache.svids().items()}
    _log.debug("Scheduled rotation for SVID entries due to tainted X.509 authorities", count=len(chains))
    affected = await asyncio.to_thread(_signed_by, authorities, chains)
    _log.info("Tainted X.509 SVIDs", tainted_x509_svids=len(affected))
    cache.renew_now(affected)


def _signed_by(authorities: frozenset[bytes], chains: Mapping[str, tuple[bytes, ...]]) -> list[str]:
    return [entry_id for entry_id, chain in chains.items() if is_signed_by(chain, authorities)]


def _authorities(bundle: Bundle) -> tuple[bytes, ...]:
    return tuple(each.der for each in bundle.x509_authorities)
