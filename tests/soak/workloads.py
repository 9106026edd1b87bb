"""Workloads that hold what the agent gives them, and look all the time whether it is still good."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from generated.spiffe.workload import workload_pb2
from identity import der, jwtsvid, x509svid
from identity.bundles import Bundle, JwtAuthority
from identity.spiffeid import TrustDomain
from transport.client import Channel

API = "/SpiffeWorkloadAPI/"
HEADER = {"workload.spiffe.io": "true"}
TRUST_DOMAIN = TrustDomain("example.org")
LOOK = 0.25
"""Seconds between two looks at what is held."""


@dataclass
class Tally:
    """What all workloads have seen together. `least_left` is how many seconds an SVID had left when it was replaced."""

    x509_svids: int = 0
    jwt_svids: int = 0
    fetches: int = 0
    least_left: float = float("inf")
    authorities: frozenset[bytes] = frozenset()
    rotations: int = 0


class X509Workload:
    """A stream of X509-SVIDs, of which it holds the last."""

    def __init__(self, socket: str, tally: Tally) -> None:
        self._socket = socket
        self._tally = tally
        self._held: dict[str, tuple[bytes, float]] = {}

    async def run(self) -> None:
        channel = Channel.unix(self._socket)
        updates = channel.server_stream(
            f"{API}FetchX509SVID", workload_pb2.X509SVIDRequest(), workload_pb2.X509SVIDResponse, metadata=HEADER
        )
        try:
            async for update in updates:
                self._take(update)
        finally:
            await channel.close()
        raise AssertionError("the stream of X509-SVIDs ended")

    def _take(self, update: workload_pb2.X509SVIDResponse) -> None:
        now = time.time()
        held: dict[str, tuple[bytes, float]] = {}
        for svid in update.svids:
            before = self._held.get(svid.spiffe_id)
            if before is not None and before[0] == svid.x509_svid:
                held[svid.spiffe_id] = before
                continue
            held[svid.spiffe_id] = (svid.x509_svid, verified(svid.x509_svid, svid.bundle))
            self._tally.x509_svids += 1
            if before is not None:
                self._tally.least_left = min(self._tally.least_left, before[1] - now)
        self._held = held
        authorities = frozenset(der.split(update.svids[0].bundle))
        if authorities - self._tally.authorities:
            self._tally.rotations += bool(self._tally.authorities)
            self._tally.authorities |= authorities

    def expired(self) -> str:
        """A SPIFFE ID whose SVID has run out; empty when there is none."""
        now = time.time()
        return next((spiffe_id for spiffe_id, (_, expires) in self._held.items() if expires <= now), "")

    @property
    def ready(self) -> bool:
        return bool(self._held)


def verified(chain: bytes, bundle: bytes) -> float:
    """When a chain that verifies with the bundle it came with runs out, in Unix seconds."""
    certificates = der.split(chain)
    x509svid.verify(certificates, {TRUST_DOMAIN: der.split(bundle)}, datetime.now(UTC))
    return der.certificate(certificates[0]).not_valid_after_utc.timestamp()


@asynccontextmanager
async def connected(socket: str) -> AsyncGenerator[Channel, None]:
    channel = Channel.unix(socket)
    try:
        yield channel
    finally:
        await channel.close()


async def fetch_x509(socket: str, tally: Tally) -> None:
    """Connect, take one update, leave without a word."""
    async with connected(socket) as channel:
        update = await anext(
            channel.server_stream(
                f"{API}FetchX509SVID", workload_pb2.X509SVIDRequest(), workload_pb2.X509SVIDResponse, metadata=HEADER
            )
        )
    for svid in update.svids:
        assert verified(svid.x509_svid, svid.bundle) > time.time()
    tally.fetches += 1


async def fetch_jwt(socket: str, spiffe_id: str, audience: str, tally: Tally) -> None:
    """Take a JWT-SVID and verify it with the bundles, and by the agent."""
    async with connected(socket) as channel:
        request = workload_pb2.JWTSVIDRequest(audience=[audience], spiffe_id=spiffe_id)
        given = await channel.unary(f"{API}FetchJWTSVID", request, workload_pb2.JWTSVIDResponse, metadata=HEADER)
        bundles = await anext(
            channel.server_stream(
                f"{API}FetchJWTBundles", workload_pb2.JWTBundlesRequest(), workload_pb2.JWTBundlesResponse,
                metadata=HEADER,
            )
        )  # fmt: skip
        for svid in given.svids:
            jwtsvid.verify(svid.svid, jwt_authorities(bundles.bundles), [audience], datetime.now(UTC))
            asked = workload_pb2.ValidateJWTSVIDRequest(audience=audience, svid=svid.svid)
            answer = await channel.unary(
                f"{API}ValidateJWTSVID", asked, workload_pb2.ValidateJWTSVIDResponse, metadata=HEADER
            )
            assert answer.spiffe_id == svid.spiffe_id
            tally.jwt_svids += 1


def jwt_authorities(documents: Mapping[str, bytes]) -> dict[TrustDomain, tuple[JwtAuthority, ...]]:
    """Of the Workload API's JWK sets, which leave out what each key is for."""
    found: dict[TrustDomain, tuple[JwtAuthority, ...]] = {}
    for name, document in documents.items():
        keys = [key | {"use": "jwt-svid"} for key in json.loads(document)["keys"]]
        domain = TrustDomain.parse(name)
        found[domain] = Bundle.from_jwks(domain, json.dumps({"keys": keys})).jwt_authorities
    return found


async def watch(workloads: list[X509Workload]) -> None:
    """Until cancelled. Raises AssertionError when a workload holds what has run out."""
    while True:
        for workload in workloads:
            if workload.expired():
                # The replacement may be there already, unread: this process, too, has pauses.
                await asyncio.sleep(1)
                assert not workload.expired(), f"{workload.expired()} ran out, and nothing has replaced it"
        await asyncio.sleep(LOOK)
