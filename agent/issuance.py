"""Having the workloads' X509-SVIDs issued when they are due, many at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from agent.backoff import Backoff, BatchSize
from agent.cache import X509Cache
from agent.csr import WorkloadKey, workload_request
from agent.denial import is_banned, must_reattest
from agent.entries import Entry
from agent.outage import Outage
from agent.rotation import RotationStrategy
from agent.server_client import ServerClient
from agent.workload_update import X509Svid
from identity import der, tainting, x509svid
from operations import logs, metrics
from operations.errors import InvalidArgument, Refused, SpireError
from plugins.keymanager import KeyType

_LARGEST_BATCH = 500  # what the server takes per second and address
_FIRST_RETRY = 0.5
_LONGEST_WAIT = 30.0
_REFUSED_RETRY = 5.0
_LOOK = 5.0
SVIDS = "X509-SVIDs"

_log = logs.get("manager")


class Issuer:
    def __init__(
        self,
        client: ServerClient,
        cache: X509Cache,
        key_type: KeyType,
        strategy: RotationStrategy,
        outage: Outage | None = None,
    ) -> None:
        self._client = client
        self._cache = cache
        self._key_type = key_type
        self._strategy = strategy
        self._outage = outage or Outage()
        self._batch = BatchSize(_LARGEST_BATCH)
        self._wanted = asyncio.Event()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="workload-keys")

    def want(self) -> None:
        """Look at once whether something is due."""
        self._wanted.set()

    def close(self) -> None:
        self._worker.shutdown(wait=False)

    async def run(self) -> None:
        """Raises RpcError when the agent is not welcome any more."""
        backoff = Backoff(_FIRST_RETRY, ceiling=_LONGEST_WAIT)
        while True:
            await self._wait()
            try:
                await self.issue_due()
            except SpireError as error:
                _log.error("SVID sync failed", error=error)
                if must_reattest(error) or is_banned(error):
                    raise
                self._outage.failed(SVIDS, error)
                await asyncio.sleep(backoff.next() or _LONGEST_WAIT)
            else:
                backoff.reset()
                self._outage.over(SVIDS)

    async def _wait(self) -> None:
        """Until something is due or wanted, with a look at the clock now and then: machines sleep."""
        due = self._cache.next_due()
        wait = _LOOK if due is None else min(_LOOK, max(0.0, due - time.time()))
        with suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await self._wanted.wait()
        self._wanted.clear()

    async def issue_due(self) -> int:
        """Have one batch issued; returns how many SVIDs came. Raises RpcError and Refused."""
        entries = self._cache.take_due(self._batch.value)
        if not entries:
            return 0
        loop = asyncio.get_running_loop()
        known = frozenset(self._cache.svids())
        if known and (expiring := sum(1 for entry in entries if entry.id in known)):
            metrics.sample("cache_manager", "expiring_svids", value=expiring)
        keys = await loop.run_in_executor(self._worker, self._make_keys, entries, known)
        try:
            with metrics.call("manager", "sync", "fetch_svids_updates"):
                chains = await self._client.new_x509_svids({entry_id: key.request for entry_id, key in keys.items()})
        except SpireError:
            self._batch.failed()
            raise
        self._batch.succeeded()
        authorities = tuple(each.der for each in self._cache.bundle.x509_authorities)
        svids = await loop.run_in_executor(self._worker, self._read, entries, keys, chains, authorities)
        self._cache.store(svids)
        self._cache.retry((entry.id for entry in entries if entry.id not in svids), time.time() + _REFUSED_RETRY)
        _log.debug("X509-SVIDs renewed", count=len(svids), asked=len(entries))
        return len(svids)

    def _make_keys(self, entries: Sequence[Entry], known: frozenset[str]) -> dict[str, WorkloadKey]:
        keys: dict[str, WorkloadKey] = {}
        for entry in entries:
            what = "Renewing X509-SVID" if entry.id in known else "Creating X509-SVID"
            _log.info(what, entry_id=entry.id, spiffe_id=entry.spiffe_id)
            keys[entry.id] = workload_request(self._key_type, entry.spiffe_id)
        return keys

    def _read(
        self,
        entries: Sequence[Entry],
        keys: Mapping[str, WorkloadKey],
        chains: Mapping[str, tuple[bytes, ...]],
        authorities: Sequence[bytes],
    ) -> dict[str, X509Svid]:
        now = time.time()
        svids: dict[str, X509Svid] = {}
        for entry in entries:
            chain, key = chains.get(entry.id), keys[entry.id]
            if chain is None:
                continue
            try:
                expires = _check(chain, entry, key, now)
                if not tainting.leads_to(chain, authorities):
                    raise Refused("no authority in the bundle vouches for it")
            except (InvalidArgument, Refused) as error:
                fields = {"entry_id": entry.id, "spiffe_id": entry.spiffe_id}
                _log.error("Refused an X509-SVID that the server sent", error=error, **fields)
                continue
            # Certificates begin a little before they are issued, so that clocks may differ; that is no part of a life.
            rotate_at = self._strategy.of_new(now, expires)
            svids[entry.id] = X509Svid(entry.spiffe_id, chain, key.private_key, expires, rotate_at)
        return svids


def _check(chain: Sequence[bytes], entry: Entry, key: WorkloadKey, now: float) -> float:
    """When the chain expires, in Unix seconds.

    Raises InvalidArgument or Refused unless it is of this entry's SPIFFE ID and this key and in force still.
    """
    for certificate in chain:
        der.certificate(certificate)
    if der.certificate_key(chain[0]) != key.public_key:
        raise Refused("its key is another one than was asked for")
    found = str(x509svid.leaf_id(chain[0]))
    if found != entry.spiffe_id:
        raise Refused(f'its SPIFFE ID is "{found}"')
    expires = der.certificate(chain[0]).not_valid_after_utc
    if expires.timestamp() <= now:
        raise Refused(f"it expired at {expires:%Y-%m-%dT%H:%M:%SZ}; compare the clocks of server and agent")
    return expires.timestamp()
