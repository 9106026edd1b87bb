"""How often callers may call: `experimental.ratelimit`, as SPIRE has it.

A caller is its set of selectors, so it is counted when its workload is attested. All that have the same selectors share
a bucket, and so do all that have none. The agent's own calls, by which it looks after its health, are not counted.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from os import getpid
from typing import Final

from agent.config.file import RateLimit
from agent.workload_attestation import WorkloadAttestation
from identity.selectors import Selector
from operations import logs, metrics
from transport.peer import Peer
from transport.router import Context
from transport.status import Code, RpcError

_METHODS: Final = {
    "fetch_x509_svid": "/SpiffeWorkloadAPI/FetchX509SVID",
    "fetch_jwt_svid": "/SpiffeWorkloadAPI/FetchJWTSVID",
    "fetch_x509_bundles": "/SpiffeWorkloadAPI/FetchX509Bundles",
    "fetch_jwt_bundles": "/SpiffeWorkloadAPI/FetchJWTBundles",
    "stream_secrets": "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets",
    "fetch_secrets": "/envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets",
}
_MOST_BUCKETS: Final = 16_384
_REFILL: Final = 1.0  # seconds until any bucket is full again, as it holds what comes in one

_log = logs.get("endpoints")


class Buckets:
    """`rate` calls a second, and as many at once, for each caller of one method.

    A bucket that is full again is forgotten. Beyond `size` buckets the one that was asked for the longest ago goes.
    """

    def __init__(self, rate: int, *, size: int = _MOST_BUCKETS, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._size = size
        self._clock = clock
        self._buckets: OrderedDict[bytes, tuple[float, float]] = OrderedDict()  # tokens, and when that was

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, caller: bytes) -> bool:
        """Whether the caller may call now."""
        now = self._clock()
        tokens, at = self._buckets.pop(caller, (float(self._rate), now))
        tokens = min(float(self._rate), tokens + (now - at) * self._rate)
        allowed = tokens >= 1
        self._buckets[caller] = (tokens - 1 if allowed else tokens, now)
        while len(self._buckets) > self._size or next(iter(self._buckets.values()))[1] + _REFILL <= now:
            self._buckets.popitem(last=False)
        return allowed


class RateLimits:
    """The buckets of the methods that have a limit, by the method's path."""

    def __init__(self, limits: RateLimit, *, clock: Callable[[], float] = time.monotonic) -> None:
        rates: Mapping[str, int] = {path: getattr(limits, setting) for setting, path in _METHODS.items()}
        self._buckets = {path: Buckets(rate, clock=clock) for path, rate in rates.items() if rate}
        for path in self._buckets:
            _log.info("Workload API/SDS rate limiting enabled", method=path, limit=rates[path])

    def check(self, path: str, selectors: Iterable[Selector]) -> None:
        """Raises RpcError, UNAVAILABLE, for one call too many. `path` is "/package.Service/Name"."""
        buckets = self._buckets.get(path)
        if buckets is not None and not buckets.take(_digest(selectors)):
            metrics.count("workload_api", "rate_limit_exceeded", method=path)
            raise RpcError(Code.UNAVAILABLE, f"rate limit exceeded for {path}")


class Admission:
    """Who calls, and whether it may: what every service asks that workloads reach."""

    def __init__(self, attestation: WorkloadAttestation, limits: RateLimits | None = None) -> None:
        self._attestation = attestation
        self._limits = limits or RateLimits(RateLimit())

    async def attest(self, peer: Peer, context: Context) -> frozenset[Selector]:
        """The caller's selectors. Raises RpcError when it calls too often, and what attestation raises."""
        selectors = await self._attestation.attest(peer)
        if peer.process is None or peer.process.pid != getpid():
            self._limits.check(context.method.path, selectors)
        return selectors


def _digest(selectors: Iterable[Selector]) -> bytes:
    """A key of fixed size: there may be thousands of selectors."""
    digest = hashlib.sha256()
    for kind, value in sorted((each.type, each.value) for each in selectors):
        digest.update(f"{kind}\0{value}\0".encode(errors="surrogateescape"))  # paths need not be UTF-8
    return digest.digest()
