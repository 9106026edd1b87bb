"""The Delegated Identity API: workloads' identities for a proxy that acts in their place, on the agent's admin socket.

A caller is attested as a workload at each call, and an entry of its own has to give it one of the SPIFFE IDs that the
configuration authorizes. It may then name any workload, by selectors or by pid, and is held to bounds all the same.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import Final

from agent.bundle_set import Bundles
from agent.cache import X509Cache
from agent.caller_limits import CallerLimits
from agent.jwt_svids import JwtSvids
from agent.logged_selectors import shortened
from agent.metrics import tell_first_update
from agent.workload_attestation import WorkloadAttestation
from agent.workload_update import WorkloadUpdate, X509Identity
from generated.spire.api.agent.delegatedidentity.v1 import delegatedidentity_pb2 as api
from generated.spire.api.types import jwtsvid_pb2, selector_pb2, x509svid_pb2
from identity.selectors import Selector
from identity.spiffeid import SpiffeId
from operations import logs
from operations.errors import InvalidArgument, SpireError
from operations.logs import Logger
from transport.peer import Peer
from transport.router import Context, Router
from transport.status import Code, RpcError

SERVICE: Final = api.DESCRIPTOR.services_by_name["DelegatedIdentity"]

MOST_SELECTORS: Final = 4096
"""Of one request."""

_log = logs.get("delegated_identity_api")


class DelegatedIdentity:
    def __init__(
        self,
        delegates: Collection[str],
        attestation: WorkloadAttestation,
        cache: X509Cache,
        jwt_svids: JwtSvids,
        *,
        limits: CallerLimits | None = None,
    ) -> None:
        """`delegates` are the SPIFFE IDs that may call."""
        self._delegates = frozenset(delegates)
        self._attestation = attestation
        self._cache = cache
        self._jwt_svids = jwt_svids
        self._limits = limits or CallerLimits()

    def add_to(self, router: Router) -> None:
        router.add(
            SERVICE,
            {
                "SubscribeToX509SVIDs": self.subscribe_to_x509_svids,
                "SubscribeToX509Bundles": self.subscribe_to_x509_bundles,
                "FetchJWTSVIDs": self.fetch_jwt_svids,
                "SubscribeToJWTBundles": self.subscribe_to_jwt_bundles,
            },
        )

    async def subscribe_to_x509_svids(
        self, request: api.SubscribeToX509SVIDsRequest, peer: Peer, context: Context
    ) -> AsyncIterator[bytes]:
        """The state now and after each change, as long as the delegate has its entry. No entry is no error."""
        call_log = _log_of(peer, context)
        begun = time.perf_counter()
        told = False
        with self._limits.stream_of(peer.process) as allowance:
            caller = await self._authorize(peer, call_log)
            selectors = await self._workload(request.selectors, request.pid, peer, call_log)
            if call_log.enabled("debug"):
                call_log.debug("Subscribing to cache changes", request_selectors=shortened(map(str, selectors)))
            with allowance.keeping(_size(selectors)), self._cache.subscribe(selectors) as subscription:
                async for update in subscription:
                    if update.all_identities and not told:
                        told = True
                        tell_first_update(time.perf_counter() - begun)
                    self._require_delegate(caller, call_log)
                    # Made once there is room for it, and not kept: a thousand streams may wait for a reader.
                    async with allowance.sending(update.size):
                        yield _x509_response(update)
                    _tell_x509(update, call_log)

    def subscribe_to_x509_bundles(
        self, request: api.SubscribeToX509BundlesRequest, peer: Peer, context: Context
    ) -> AsyncIterator[bytes]:
        del request

        def response_of(bundles: Bundles) -> bytes:
            return api.SubscribeToX509BundlesResponse(ca_certificates=bundles.x509).SerializeToString()

        return self._bundles(peer, _log_of(peer, context), response_of)

    def subscribe_to_jwt_bundles(
        self, request: api.SubscribeToJWTBundlesRequest, peer: Peer, context: Context
    ) -> AsyncIterator[bytes]:
        del request

        def response_of(bundles: Bundles) -> bytes:
            return api.SubscribeToJWTBundlesResponse(bundles=bundles.jwt).SerializeToString()

        return self._bundles(peer, _log_of(peer, context), response_of)

    async def fetch_jwt_svids(
        self, request: api.FetchJWTSVIDsRequest, peer: Peer, context: Context
    ) -> api.FetchJWTSVIDsResponse:
        call_log = _log_of(peer, context)
        if not request.audience:
            call_log.error("Missing required audience parameter")
            raise RpcError(Code.INVALID_ARGUMENT, "audience must be specified")
        await self._authorize(peer, call_log)
        selectors = await self._workload(request.selectors, request.pid, peer, call_log)
        entries = [entry for entry in self._cache.matching(selectors) if entry.may_be_delegated]
        if not entries:
            call_log.error("No identity issued")
            raise RpcError(Code.PERMISSION_DENIED, "no identity issued")
        response = api.FetchJWTSVIDsResponse()
        for entry in entries:
            try:
                svid = await self._jwt_svids.fetch(entry, request.audience)
            except SpireError as error:
                call_log.error("Could not fetch JWT-SVID", spiffe_id=entry.spiffe_id, error=error)
                raise RpcError(Code.UNAVAILABLE, f"could not fetch JWT-SVID: {error}") from error
            response.svids.append(
                jwtsvid_pb2.JWTSVID(
                    token=svid.token,
                    id=SpiffeId.parse(entry.spiffe_id).to_proto(),
                    expires_at=int(svid.expires_at),
                    issued_at=int(svid.issued_at),
                    hint=entry.hint,
                )
            )
            call_log.debug("Fetched JWT SVID", spiffe_id=entry.spiffe_id, ttl=_ttl(svid.expires_at))
        return response

    async def _bundles(
        self, peer: Peer, call_log: Logger, response_of: Callable[[Bundles], bytes]
    ) -> AsyncIterator[bytes]:
        """All that the agent knows, now and after each change, as long as the delegate has its entry."""
        with self._limits.stream_of(peer.process) as allowance:
            caller = await self._authorize(peer, call_log)
            with self._cache.bundles.subscribe() as news:
                async for bundles in news:
                    self._require_delegate(caller, call_log)
                    async with allowance.sending(bundles.size):
                        yield response_of(bundles)

    # Who asks

    async def _authorize(self, peer: Peer, call_log: Logger) -> frozenset[Selector]:
        """The caller's selectors. Raises TemporarilyUnavailable when it cannot be attested, and RpcError."""
        caller = await self._attestation.attest(peer)
        self._require_delegate(caller, call_log)
        return caller

    def _require_delegate(self, caller: frozenset[Selector], call_log: Logger) -> None:
        """Raises RpcError unless an entry makes a delegate of the caller: it may have lost it since it asked."""
        entries = self._cache.matching(caller)
        if not entries:
            call_log.error("No identity issued")
            raise RpcError(Code.PERMISSION_DENIED, "no identity issued")
        delegate = next((entry.spiffe_id for entry in entries if entry.spiffe_id in self._delegates), None)
        if delegate is None:
            call_log.error(
                "Permission denied; caller not configured as an authorized delegate.",
                num_registered_entries=len(entries),
                default_id=entries[0].spiffe_id,
            )
            raise RpcError(Code.PERMISSION_DENIED, "caller not configured as an authorized delegate")
        call_log.debug("Caller authorized as delegate", delegate_id=delegate)

    # For whom

    async def _workload(
        self, selectors: Sequence[selector_pb2.Selector], pid: int, peer: Peer, call_log: Logger
    ) -> frozenset[Selector]:
        """The selectors that the delegate vouches for, or those of the process that it names."""
        if bool(selectors) == bool(pid):
            text = "must provide either selectors or non-zero PID, but not both"
            call_log.error(f"Invalid argument; {text}")
            raise RpcError(Code.INVALID_ARGUMENT, text)
        if pid:
            return await self._attestation.attest_pid(pid, peer)
        if len(selectors) > MOST_SELECTORS:
            raise RpcError(
                Code.INVALID_ARGUMENT, f"{len(selectors)} selectors are too many: at most {MOST_SELECTORS} are matched"
            )
        try:
            return frozenset(Selector.of(each.type, each.value) for each in selectors)
        except InvalidArgument as error:
            call_log.error("Invalid argument; could not parse provided selectors", error=error)
            raise RpcError(Code.INVALID_ARGUMENT, "could not parse provided selectors") from error


def _size(selectors: Collection[Selector]) -> int:
    """Roughly the bytes of memory that the selectors of a stream and their index take."""
    return sum(512 + len(each.type) + len(each.value) for each in selectors)


def _delegated(update: WorkloadUpdate) -> list[X509Identity]:
    return [identity for identity in update.all_identities if identity.entry.may_be_delegated]


def _x509_response(update: WorkloadUpdate) -> bytes:
    response = api.SubscribeToX509SVIDsResponse(
        x509_svids=[
            api.X509SVIDWithKey(
                x509_svid=x509svid_pb2.X509SVID(
                    id=SpiffeId.parse(identity.entry.spiffe_id).to_proto(),
                    cert_chain=identity.svid.chain,
                    expires_at=int(identity.svid.expires_at),
                    hint=identity.entry.hint,
                ),
                x509_svid_key=identity.svid.private_key,
            )
            for identity in _delegated(update)
        ],
        federates_with=sorted(each.trust_domain.id for each in update.federated.values()),
    )
    return response.SerializeToString()


def _log_of(peer: Peer, context: Context) -> Logger:
    """With whose call of which method it is in each line."""
    pid = peer.process.pid if peer.process else 0
    return _log.bind(service="DelegatedIdentity", method=context.method.name, pid=pid)


def _tell_x509(update: WorkloadUpdate, call_log: Logger) -> None:
    """Which SVIDs the delegate was given, and how many seconds each lives."""
    if call_log.enabled("debug"):
        given = _delegated(update)
        for identity in given:
            text = "Fetched X.509 SVID for delegated identity"
            ttl = _ttl(identity.svid.expires_at)
            call_log.debug(text, count=len(given), spiffe_id=identity.entry.spiffe_id, ttl=ttl)


def _ttl(expires_at: float) -> float:
    return round(expires_at - time.time(), 3)
