"""The SPIFFE Broker API (SPIFFE_Broker_API.md): what a workload would be given, for a broker that refers to it.

Unlike a delegate, a broker never says what a workload is: the workload attestors find that out from its reference.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Final

from agent.bundle_set import Bundles, x509_authorities
from agent.cache import X509Cache
from agent.caller_limits import CallerLimits
from agent.config.delegation import ANY_REFERENCE
from agent.entries import Entry, without_duplicate_hints
from agent.jwt_svids import JwtSvids
from agent.metrics import tell_first_update
from agent.reflection import NAMES as REFLECTION
from agent.workload_attestation import WorkloadAttestation
from agent.workload_update import WorkloadUpdate, X509Identity
from generated.spiffe.broker import api_pb2 as api
from identity import x509svid
from identity.selectors import Selector
from identity.spiffeid import SpiffeId
from operations import logs
from operations.errors import InvalidArgument, SpireError
from operations.logs import Logger
from operations.quoting import quote
from transport.peer import Peer
from transport.router import Context, Method, Router
from transport.status import Code, RpcError

SERVICE: Final = api.DESCRIPTOR.services_by_name["API"]
SECURITY_HEADER: Final = "broker.spiffe.io"

_LONGEST_TOLD: Final = 256

_log = logs.get("broker_api")


async def check_call(method: Method, peer: Peer, context: Context) -> None:
    """Refuse calls that a browser or a proxy was tricked into (SPIFFE_Broker_Endpoint.md); and questions from afar."""
    if method.service in REFLECTION and peer.process is None:
        raise RpcError(Code.PERMISSION_DENIED, "server reflection is only available over Unix sockets")
    if context.metadata.get(SECURITY_HEADER) != "true":
        raise RpcError(Code.INVALID_ARGUMENT, "security header missing from request")


class BrokerApi:
    """For callers whose X509-SVID has been verified when they connected."""

    def __init__(
        self,
        brokers: Mapping[SpiffeId, Mapping[str, bool]],
        attestation: WorkloadAttestation,
        cache: X509Cache,
        jwt_svids: JwtSvids,
        *,
        limits: CallerLimits | None = None,
    ) -> None:
        """`brokers` as in agent.config.delegation.BrokerSettings."""
        self._brokers = brokers
        self._attestation = attestation
        self._cache = cache
        self._jwt_svids = jwt_svids
        self._limits = limits or CallerLimits()

    def add_to(self, router: Router) -> None:
        router.add(
            SERVICE,
            {
                "SubscribeToX509SVID": self.subscribe_to_x509_svid,
                "SubscribeToX509Bundles": self.subscribe_to_x509_bundles,
                "FetchJWTSVID": self.fetch_jwt_svid,
                "SubscribeToJWTBundles": self.subscribe_to_jwt_bundles,
            },
        )

    async def subscribe_to_x509_svid(
        self, request: api.SubscribeToX509SVIDRequest, peer: Peer, context: Context
    ) -> AsyncIterator[bytes]:
        """The state now and after each change. No entry is no error."""
        begun = time.perf_counter()
        told = False
        broker = _caller(peer)
        call_log = _log_of(broker, context)
        with self._limits.stream_of(broker) as allowance:
            selectors = await self._attest(request.reference, broker, peer, call_log)
            with self._cache.subscribe(selectors) as subscription:
                async for update in subscription:
                    if update.identities and not told:
                        told = True
                        tell_first_update(time.perf_counter() - begun)
                    # Made once there is room for it, and not kept: a thousand streams may wait for a reader.
                    async with allowance.sending(update.size):
                        yield _x509_response(update)
                    _tell_x509(update, call_log)

    def subscribe_to_x509_bundles(
        self, request: api.SubscribeToX509BundlesRequest, peer: Peer, context: Context
    ) -> AsyncIterator[bytes]:
        def response_of(bundles: Bundles) -> bytes:
            return api.SubscribeToX509BundlesResponse(bundles=bundles.x509).SerializeToString()

        return self._bundles(request.reference, peer, context, response_of)

    def subscribe_to_jwt_bundles(
        self, request: api.SubscribeToJWTBundlesRequest, peer: Peer, context: Context
    ) -> AsyncIterator[bytes]:
        def response_of(bundles: Bundles) -> bytes:
            return api.SubscribeToJWTBundlesResponse(bundles=bundles.jwt).SerializeToString()

        return self._bundles(request.reference, peer, context, response_of)

    async def fetch_jwt_svid(
        self, request: api.FetchJWTSVIDRequest, peer: Peer, context: Context
    ) -> api.FetchJWTSVIDResponse:
        broker = _caller(peer)
        call_log = _log_of(broker, context)
        if not request.audience:
            call_log.error("Missing required audience parameter")
            raise RpcError(Code.INVALID_ARGUMENT, "audience must be specified")
        if request.spiffe_id:
            _check_requested(request.spiffe_id)
        selectors = await self._attest(request.reference, broker, peer, call_log)
        entries = self._wanted(selectors, request.spiffe_id)
        if not entries:
            call_log.error("No identity issued")
            raise RpcError(Code.PERMISSION_DENIED, "no identity issued")
        response = api.FetchJWTSVIDResponse()
        for entry in entries:
            try:
                svid = await self._jwt_svids.fetch(entry, request.audience)
            except SpireError as error:
                call_log.error("Could not fetch JWT-SVID", spiffe_id=entry.spiffe_id, error=error)
                raise RpcError(Code.UNAVAILABLE, f"could not fetch JWT-SVID: {error}") from error
            response.svids.add(spiffe_id=entry.spiffe_id, svid=svid.token, hint=entry.hint)
            call_log.debug("Fetched JWT SVID", spiffe_id=entry.spiffe_id, ttl=_ttl(svid.expires_at))
        return response

    def _wanted(self, selectors: frozenset[Selector], spiffe_id: str) -> Sequence[Entry]:
        """Of the workload's entries those that the broker asks for: all, or of one SPIFFE ID."""
        entries = without_duplicate_hints(self._cache.matching(selectors))
        return [each for each in entries if each.may_be_delegated and spiffe_id in ("", each.spiffe_id)]

    async def _bundles(
        self, reference: api.WorkloadReference, peer: Peer, context: Context, response_of: Callable[[Bundles], bytes]
    ) -> AsyncIterator[bytes]:
        """All that the agent knows, now and after each change, for a workload that the broker may refer to."""
        broker = _caller(peer)
        with self._limits.stream_of(broker) as allowance:
            await self._attest(reference, broker, peer, _log_of(broker, context))
            with self._cache.bundles.subscribe() as news:
                async for bundles in news:
                    async with allowance.sending(bundles.size):
                        yield response_of(bundles)

    async def _attest(
        self, workload: api.WorkloadReference, broker: SpiffeId, peer: Peer, call_log: Logger
    ) -> frozenset[Selector]:
        """The workload's selectors. Raises RpcError, and what WorkloadAttestation raises."""
        reference = workload.reference
        if not reference.type_url:
            raise RpcError(Code.INVALID_ARGUMENT, "workload reference must be provided")
        self._check_reference(reference.type_url, broker, over_tcp=peer.process is None)
        try:
            return await self._attestation.attest_reference(reference.type_url, reference.value, str(broker))
        except SpireError as error:
            call_log.error("Workload attestation failed", error=error)
            raise

    def _check_reference(self, type_url: str, broker: SpiffeId, *, over_tcp: bool) -> None:
        """Raise RpcError unless the broker may use this kind of reference, here."""
        allowed = self._brokers.get(broker, {})
        known = ANY_REFERENCE if ANY_REFERENCE in allowed else type_url
        kind = quote(type_url[:_LONGEST_TOLD])
        if known not in allowed:
            text = f'broker "{broker}" is not allowed to use reference type {kind}'
            raise RpcError(Code.PERMISSION_DENIED, text)
        if over_tcp and not allowed[known]:
            text = f'reference type {kind} is not allowed over TCP for broker "{broker}"'
            raise RpcError(Code.PERMISSION_DENIED, text)


def _caller(peer: Peer) -> SpiffeId:
    return x509svid.leaf_id(peer.certificates[0])


def _check_requested(spiffe_id: str) -> None:
    try:
        SpiffeId.parse(spiffe_id)
    except InvalidArgument as error:
        raise RpcError(Code.INVALID_ARGUMENT, f"invalid requested SPIFFE ID: {error}") from error


def _given(update: WorkloadUpdate) -> list[X509Identity]:
    return [identity for identity in update.identities if identity.entry.may_be_delegated]


def _x509_response(update: WorkloadUpdate) -> bytes:
    own = x509_authorities(update.bundle)
    response = api.SubscribeToX509SVIDResponse(
        svids=[
            api.X509SVID(
                spiffe_id=identity.entry.spiffe_id,
                x509_svid=b"".join(identity.svid.chain),
                x509_svid_key=identity.svid.private_key,
                bundle=own,
                hint=identity.entry.hint,
            )
            for identity in _given(update)
        ],
        federated_bundles={each.trust_domain.id: x509_authorities(each) for each in update.federated.values()},
    )
    return response.SerializeToString()


def _log_of(broker: SpiffeId, context: Context) -> Logger:
    """With whose call of which method it is in each line."""
    return _log.bind(service=SERVICE.full_name, method=context.method.name, broker_peer=broker)


def _tell_x509(update: WorkloadUpdate, call_log: Logger) -> None:
    """Which SVIDs the broker was given, and how many seconds each lives."""
    if call_log.enabled("debug"):
        given = _given(update)
        for identity in given:
            ttl = _ttl(identity.svid.expires_at)
            call_log.debug(
                "Fetched X.509 SVID for broker", count=len(given), spiffe_id=identity.entry.spiffe_id, ttl=ttl
            )


def _ttl(expires_at: float) -> float:
    return round(expires_at - time.time(), 3)
