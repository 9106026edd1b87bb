"""Rate limits per caller's IP address: token buckets that make a call wait, as SPIRE's do.

A call waits for its tokens while its deadline allows; one that asks for more than a bucket holds is refused at once.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from transport.status import Code, RpcError

ATTESTATIONS_PER_SECOND = 1
SIGNATURES_PER_SECOND = 500
POSTS_PER_SECOND = 10
PUBLICATIONS_PER_SECOND = 500
MAX_BUCKETS = 16_384


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled: float


class RateLimit:
    """`rate` tokens a second and a burst of as many, for each key.

    The table is bounded: the address that has been quiet longest is forgotten first.
    """

    def __init__(self, rate: int, *, clock: Callable[[], float] | None = None, size: int = MAX_BUCKETS) -> None:
        self._rate = rate
        self._clock = clock
        self._size = size
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    async def wait(self, key: str, count: int, deadline: float | None) -> None:
        """Take `count` tokens, waiting for them. `deadline` is loop time. Raises RpcError RESOURCE_EXHAUSTED."""
        if count > self._rate:
            raise RpcError(Code.RESOURCE_EXHAUSTED, f"rate ({count}) exceeds burst size ({self._rate})")
        now = self._clock() if self._clock is not None else asyncio.get_running_loop().time()
        bucket = self._bucket(key, now)
        delay = (count - bucket.tokens) / self._rate
        if delay > 0 and deadline is not None and now + delay > deadline:
            raise RpcError(Code.RESOURCE_EXHAUSTED, f"rate: Wait(n={count}) would exceed context deadline")
        bucket.tokens -= count
        if delay > 0:
            try:
                await asyncio.sleep(delay)
            except asyncio.CancelledError:
                bucket.tokens += count
                raise

    def _bucket(self, key: str, now: float) -> _Bucket:
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket(float(self._rate), now)
            if len(self._buckets) > self._size:
                self._buckets.popitem(last=False)
            return bucket
        self._buckets.move_to_end(key)
        bucket.tokens = min(float(self._rate), bucket.tokens + (now - bucket.filled) * self._rate)
        bucket.filled = now
        return bucket


def server_limits(*, attestation: bool, signing: bool) -> Mapping[str, RateLimit]:
    """The limits of the server's methods by path; what signs certificates shares its buckets.

    `attestation` and `signing` are the switches of the `ratelimit` block.
    """
    limits = {
        "/spire.api.server.agent.v1.Agent/PostStatus": RateLimit(POSTS_PER_SECOND),
        "/spire.api.server.bundle.v1.Bundle/PublishJWTAuthority": RateLimit(PUBLICATIONS_PER_SECOND),
    }
    if attestation:
        limits["/spire.api.server.agent.v1.Agent/AttestAgent"] = RateLimit(ATTESTATIONS_PER_SECOND)
    if signing:
        certificates = RateLimit(SIGNATURES_PER_SECOND)
        limits["/spire.api.server.svid.v1.SVID/BatchNewX509SVID"] = certificates
        limits["/spire.api.server.agent.v1.Agent/RenewAgent"] = certificates
        limits["/spire.api.server.svid.v1.SVID/NewDownstreamX509CA"] = certificates
        limits["/spire.api.server.svid.v1.SVID/NewJWTSVID"] = RateLimit(SIGNATURES_PER_SECOND)
        limits["/spire.api.server.svid.v1.SVID/BatchNewWITSVID"] = RateLimit(SIGNATURES_PER_SECOND)
    return limits
