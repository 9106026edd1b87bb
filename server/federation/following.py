"""Keeping the bundles of other trust domains as their endpoints have them.

Whom to follow stands in the configuration and in the datastore, of which another server may change it. Each trust
domain has a task that sleeps until its bundle is due. A bundle that cannot be had, or may not take the place of the one
there is, leaves that one as it was.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from identity.bundles import Bundle
from identity.spiffeid import SpiffeId, TrustDomain
from operations import logs, metrics
from operations.errors import NotFound, Refused, SpireError, TemporarilyUnavailable
from server.config.federation import Federated
from server.datastore.federation import FederationRelationship
from server.datastore.records import Changes
from server.datastore.store import DataStore
from server.federation.judging import judge
from server.trust import TrustBundles

if TYPE_CHECKING:
    from server.federation.fetching import BundleFetcher

RELOAD = 10.0
"""Seconds after which a relationship that another server of the same database changed is seen, as in SPIRE."""

AT_ONCE = 8
"""Endpoints that are asked at the same time, however many there are; as many more when operators ask for it."""

ATTEMPTS = 4
"""Polls within a refresh hint, as in SPIRE: one that fails is not missed."""

WITHOUT_HINT = 300.0
LEAST_HINT = 60.0
MOST = 24 * 3600.0
RETRY = 60.0
"""Seconds: what a bundle without a hint is polled at, as the standard recommends; the least hint that is believed; the
most that a poll is put off; the first wait after a failure, which doubles up to the usual one."""

_JITTER = 0.1
_TRIES = 3

_log = logs.get("bundle_client")


@dataclass(eq=False)
class _Followed:
    """`due` is in the loop's time. `failures` are those since the last success; `busy` while a bundle is fetched."""

    federated: Federated
    due: float = 0.0
    failures: int = 0
    hint: int = 0
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def set_due(self, moment: float) -> None:
        self.due = moment
        self.moved.set()

    async def until_due(self) -> None:
        while (left := self.due - asyncio.get_running_loop().time()) > 0:
            self.moved.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self.moved.wait()


class Following:
    """Relationships of `federates_with` win over those of the datastore that have the same trust domain."""

    def __init__(
        self,
        federates_with: Iterable[Federated],
        store: DataStore,
        bundles: TrustBundles,
        *,
        require_pq_kem: bool = False,
        fetcher: BundleFetcher | None = None,
    ) -> None:
        """`require_pq_kem` is for endpoints under https_spiffe."""
        self._static = {each.trust_domain: each for each in federates_with}
        self._store = store
        self._bundles = bundles
        self._require_pq_kem = require_pq_kem
        self._made_fetcher = fetcher
        self._followed: dict[TrustDomain, _Followed] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._asked_slots = asyncio.Semaphore(AT_ONCE)
        self._reloading = asyncio.Lock()
        self._wanted = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None
        self._blind = False

    async def run(self) -> None:
        """Until cancelled."""
        unsubscribe = self._store.subscribe(self._stored)
        try:
            async with asyncio.TaskGroup() as self._tasks:
                while True:
                    self._wanted.clear()
                    await self._reload()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(RELOAD):
                            await self._wanted.wait()
        finally:
            self._tasks = None
            unsubscribe()
            if self._made_fetcher is not None:
                self._made_fetcher.close()

    def changed(self) -> None:
        """A relationship in the datastore is another one now."""
        self._wanted.set()

    async def refresh(self, trust_domain: TrustDomain) -> bool:
        """Fetch the bundle now; whether there is a relationship. Raises SpireError when it cannot be had."""
        await self._reload()
        followed = self._followed.get(trust_domain)
        if followed is None:
            return False
        async with self._asked_slots:
            await self._update(followed)
        return True

    # Whom to follow

    async def _reload(self) -> None:
        async with self._reloading:
            try:
                wanted = await self._relationships()
            except SpireError as error:
                if not self._blind:
                    self._blind = True
                    _log.error("Failed to reload configs; following those there were", error=error)
                # What the configuration says holds without the datastore.
                wanted = {**{name: each.federated for name, each in self._followed.items()}, **self._static}
            else:
                self._blind = False
            self._follow_these(wanted)

    async def _relationships(self) -> Mapping[TrustDomain, Federated]:
        stored = (await self._store.list_federation_relationships(with_bundles=False)).items
        return {**{each.trust_domain: _federated(each) for each in stored}, **self._static}

    def _follow_these(self, wanted: Mapping[TrustDomain, Federated]) -> None:
        for name in self._followed.keys() - wanted.keys():
            _log.info("Trust domain no longer managed", trust_domain=name.name)
            self._leave(name)
        for name, federated in wanted.items():
            known = self._followed.get(name)
            if known is None:
                self._tell("Trust domain is now managed", federated)
            elif known.federated != federated:
                self._tell("Updated configuration for managed trust domain", federated)
                self._leave(name)
            if name not in self._followed:
                self._followed[name] = _Followed(federated)
        if self._tasks is not None:
            for each in self._followed.values():
                if each.task is None:
                    each.task = self._tasks.create_task(self._follow(each))

    def _leave(self, name: TrustDomain) -> None:
        """An answer that is under way is dropped."""
        left = self._followed.pop(name)
        if left.task is not None:
            left.task.cancel()

    def _tell(self, message: str, federated: Federated) -> None:
        profile = "https_web" if federated.endpoint_id is None else "https_spiffe"
        log = _log.bind(trust_domain=federated.trust_domain.name)
        log.info(message, bundle_endpoint_url=federated.url, bundle_endpoint_profile=profile)
        if federated.endpoint_id is None and self._require_pq_kem:
            log.warning("require_pq_kem does not reach bundle endpoints under https_web: use https_spiffe")

    def _stored(self, changes: Changes) -> None:
        """Who could not be known for lack of a good bundle is tried again as soon as an operator gives one."""
        for followed in self._followed.values():
            endpoint_id = followed.federated.endpoint_id
            if followed.failures and endpoint_id is not None and endpoint_id.trust_domain.name in changes.bundles:
                followed.set_due(0.0)

    # One trust domain

    async def _follow(self, followed: _Followed) -> None:
        log = _log.bind(trust_domain=followed.federated.trust_domain.name)
        try:
            while True:
                await followed.until_due()
                log.debug("Polling for bundle update")
                try:
                    async with self._slots:
                        await self._update(followed)
                except SpireError as error:
                    name = followed.federated.trust_domain.name
                    _log.error("Error updating bundle", trust_domain=name, error=error)
                wait = followed.due - asyncio.get_running_loop().time()
                at = datetime.fromtimestamp(time.time() + wait, UTC)
                log.debug("Scheduling next bundle refresh", at=f"{at:%Y-%m-%dT%H:%M:%SZ}")
        finally:
            log.info("No longer polling for updates")

    async def _update(self, followed: _Followed) -> None:
        """Bring the bundle, and say when it is due again. Raises SpireError."""
        loop = asyncio.get_running_loop()
        async with followed.busy:
            followed.due = loop.time() + MOST  # unless a bundle that is set meanwhile brings it forward
            try:
                name = followed.federated.trust_domain.name
                with metrics.call("bundle_manager", "fetch", "federated_bundle", trust_domain_id=name):
                    await self._bring(followed)
                followed.failures = 0
            except SpireError:
                followed.failures += 1
                raise
            finally:
                followed.set_due(min(followed.due, loop.time() + waiting_time(followed.hint, followed.failures)))

    async def _bring(self, followed: _Followed) -> None:
        """Store the bundle as the endpoint has it, where it differs from the one there is."""
        trust_domain = followed.federated.trust_domain
        for _ in range(_TRIES):
            with _failing("failed to fetch local federated bundle"):
                known = await self._store.get_bundle(trust_domain)
            followed.hint = 0 if known is None else known.refresh_hint
            with _failing("failed to fetch federated bundle from endpoint"):
                fetched = await self._fetch(followed.federated, known)
            if fetched == known or await self._replace(followed, known, fetched):
                followed.hint = fetched.refresh_hint
                return
        raise TemporarilyUnavailable("the bundle was changed by others each time that it was fetched")

    async def _fetch(self, federated: Federated, known: Bundle | None) -> Bundle:
        roots = await self._endpoint_roots(federated, known)
        fetched = await self._fetcher().fetch(federated, roots)
        # In a thread: there may be thousands of certificates in it.
        await asyncio.to_thread(judge, fetched, known, federated, datetime.now(UTC))
        return fetched

    async def _endpoint_roots(self, federated: Federated, known: Bundle | None) -> Sequence[bytes]:
        if federated.endpoint_id is None:
            return ()
        endpoint_domain = federated.endpoint_id.trust_domain
        bundle = known if endpoint_domain == federated.trust_domain else await self._bundles.get(endpoint_domain)
        return () if bundle is None else [each.der for each in bundle.x509_authorities]

    async def _replace(self, followed: _Followed, known: Bundle | None, fetched: Bundle) -> bool:
        """Whether the bundle there is was still `known`: what an operator sets meanwhile is judged before it is left.

        Raises NotFound when the relationship is none any more.
        """
        trust_domain = fetched.trust_domain
        if self._followed.get(trust_domain) is not followed:
            raise NotFound(f'the relationship with trust domain "{trust_domain}" was changed while its bundle came')
        followed.failures = 0  # what is stored now is no reason to try again
        with _failing("failed to store fetched federated bundle"):
            if not await self._store.replace_bundle(known, fetched):
                return False
        log = _log.bind(trust_domain=trust_domain.name, sequence_number=fetched.sequence_number)
        if known is not None and _is_silent_change(known, fetched):
            log.warning("Bundle has other authorities than before, and the same sequence number")
        metrics.count("bundle_manager", "update", "federated_bundle", trust_domain_id=trust_domain.name)
        log.info("Bundle refreshed")
        return True

    def _fetcher(self) -> BundleFetcher:
        if self._made_fetcher is None:
            # Who federates with nobody loads no HTTP client.
            from server.federation.fetching import BundleFetcher

            self._made_fetcher = BundleFetcher(os.environ, require_pq_kem=self._require_pq_kem)
        return self._made_fetcher


def _federated(relationship: FederationRelationship) -> Federated:
    endpoint_id = relationship.endpoint_spiffe_id
    return Federated(
        relationship.trust_domain,
        relationship.bundle_endpoint_url,
        SpiffeId.parse(endpoint_id) if endpoint_id else None,
    )


def waiting_time(hint: int, failures: int) -> float:
    """Seconds until the next poll, by the bundle's hint and the failures in a row."""
    usual = max(hint, LEAST_HINT) / ATTEMPTS if hint else WITHOUT_HINT
    wait = min(usual, MOST)
    if failures:
        wait = min(wait, RETRY * 2 ** min(failures - 1, 16))
    return wait * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - spreads load, guards nothing


def _is_silent_change(known: Bundle, fetched: Bundle) -> bool:
    """A new hint is none: it is the endpoint's, and no content of the bundle."""
    same_number = known.sequence_number == fetched.sequence_number != 0
    return same_number and replace(known, refresh_hint=0) != replace(fetched, refresh_hint=0)


@contextmanager
def _failing(what: str) -> Generator[None]:
    """Says what failed, in SPIRE's words, before the reason."""
    try:
        yield
    except TemporarilyUnavailable as error:
        raise TemporarilyUnavailable(f"{what}: {error}") from error
    except SpireError as error:
        raise Refused(f"{what}: {error}") from error
