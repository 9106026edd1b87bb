"""Keeps everything in step with the server: entries, bundles, the workloads' SVIDs and the agent's own."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.attest import Attestation
from agent.backoff import Backoff
from agent.cache import X509Cache
from agent.denial import BANNED, EVICTED, STRANGER, Unwelcome, is_banned, is_unknown_authority, must_reattest
from agent.identity import AgentSvid
from agent.issuance import Issuer
from agent.jwt_cache import JwtCache
from agent.jwt_svids import JwtSvids
from agent.own_svid import OwnSvid
from agent.rotation import RotationStrategy
from agent.server_client import TIMEOUT, ServerClient
from agent.startup import Start
from agent.svid_stores import SIZE, SvidStores
from agent.sync import DEFAULT_INTERVAL, Synchroniser
from agent.tasks import until_first
from identity.bundles import Bundle
from identity.tainting import is_signed_by, subject_key_id
from operations import logs
from operations.errors import SpireError
from plugins.keymanager import KeyType
from plugins.svidstore import SvidStore

_log = logs.get("manager")

_RETRY_INTERVAL = 5.0
_RETRY_BUDGET = 60.0


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
        self, settings: Settings, start: Start, found: Attestation, stores: Mapping[str, SvidStore] | None = None
    ) -> None:
        self._storage = start.storage
        self._tainted_x509: frozenset[bytes] = frozenset()
        self._tainted_jwt: frozenset[str] = frozenset()
        self._jwt_cache = JwtCache(settings.jwt_cache_size)
        self.cache = X509Cache(found.bundle, size=settings.x509_cache_size, wanted=self._on_wanted)
        self._client = ServerClient(start.address, found.svid, self._authorities)
        self._issuer = Issuer(self._client, self.cache, settings.workload_key_type, settings.strategy)
        self._stores: SvidStores | None = None
        self.to_store: X509Cache | None = None
        self._storing: Issuer | None = None
        if stores:
            self.to_store = X509Cache(found.bundle, size=SIZE, wanted=self._on_wanted)
            self._storing = Issuer(self._client, self.to_store, settings.workload_key_type, settings.strategy)
            self._stores = SvidStores(self.to_store, stores)
        self._own = OwnSvid(self._client, start, self._authorities, settings.strategy)
        self._sync = Synchroniser(
            self._client,
            self.cache,
            self._on_bundle,
            to_store=self.to_store,
            interval=settings.sync_interval,
            by_revision=settings.sync_by_revision,
        )
        self.jwt_svids = JwtSvids(self._client, self._jwt_cache, hit_timeout=settings.jwt_hit_timeout)

    async def initialise(self, version: str) -> None:
        """Store what the attestation gave and synchronise once, trying for a minute.

        Raises RpcError and Refused. With Unwelcome the stored SVID is gone, so that the next start attests anew.
        """
        await self._own.store()
        await self._store_bundle(self.cache.bundle)
        backoff = Backoff(_RETRY_INTERVAL, budget=_RETRY_BUDGET)
        while True:
            try:
                await self._sync.synchronise()
                break
            except SpireError as error:
                if must_reattest(error) or is_banned(error):
                    state = "is banned" if is_banned(error) else "needs to re-attest"
                    _log.error(f"Agent {state}: removing SVID and shutting down", error=error)
                    await self._own.forget()
                    raise Unwelcome(BANNED if is_banned(error) else EVICTED) from error
                wait = backoff.next()
                if wait is None:
                    if is_unknown_authority(error):
                        raise Unwelcome(STRANGER) from error
                    raise
                _log.warning("Failed to initialize manager", error=error, retry_interval=f"{wait:.1f}s")
            await asyncio.sleep(wait)
        await self._post_status(version)

    async def _post_status(self, version: str) -> None:
        try:
            await self._client.post_status(version)
        except SpireError as error:
            _log.error("Failed to post agent status", agent_version=version, error=error)

    async def run(self) -> None:
        """Until cancelled. Raises SpireError classes when the agent cannot go on."""
        while True:
            try:
                await until_first(*self._work())
            except SpireError as error:
                if is_banned(error):
                    _log.warning("Agent is banned: removing SVID and shutting down", error=error)
                    await self._own.forget()
                    raise Unwelcome(BANNED) from error
                if is_unknown_authority(error):
                    raise Unwelcome(STRANGER) from error
                if not must_reattest(error):
                    raise
                _log.warning("Agent needs to re-attest; will attempt to re-attest", error=error)
                await self._reattest()

    def _work(self) -> Iterator[Coroutine[Any, Any, None]]:
        yield from (self._sync.run(), self._issuer.run(), self._own.run())
        if self._stores is not None and self._storing is not None:
            yield from (self._storing.run(), self._stores.run())

    async def _reattest(self) -> None:
        try:
            await self._own.reattest()
        except SpireError as error:
            _log.error("Agent failed re-attestation; removing SVID and shutting down", error=error)
            await self._own.forget()
            raise Unwelcome(EVICTED) from error

    async def close(self) -> None:
        for issuer in (self._issuer, self._storing):
            if issuer is not None:
                issuer.close()
        await self._client.close()

    @property
    def svid(self) -> AgentSvid:
        """The agent's own."""
        return self._own.current

    @property
    def jwt_svid_count(self) -> int:
        return len(self._jwt_cache)

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

    async def _on_bundle(self, bundle: Bundle) -> None:
        if _authorities(bundle) != self._storage.state.bundle:
            await self._store_bundle(bundle)
        await self._renew_tainted_x509(bundle)
        self._drop_tainted_jwt(bundle)

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
            if dropped := self._jwt_cache.drop_signed_by(fresh):
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
