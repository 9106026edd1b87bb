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
from agent.jwt_svids import JwtSvids
from agent.metrics import tell_first_update
from agent.stream_limits import StreamLimits
from agent.workload_attestation import WorkloadAttestation
from agent.workload_update import WorkloadUpdate, X509Identity
from generated.spire.api.agent.delegatedidentity.v1 import delegatedidentity_pb2 as api
from generated.spire.api.types import jwtsvid_pb2, selector_pb2, x509svid_pb2
from identity.selectors import Selector
from identity.spiffeid import SpiffeId
from operations import logs
from operations.errors import InvalidArgument, SpireError
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
        limits: StreamLimits | None = None,
    ) -> None:
        """`delegates` are the SPIFFE IDs that may call."""
        self._delegates = frozenset(delegates)
        self._attestation = attestation
        self._cache = cache
        self._jwt_svids = jwt_svids
        self._limits = limits or StreamLimits()

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
        del context
        begun = time.perf_counter()
        told = False
        with self._limits.stream_of(peer.process) as allowance:
            caller = await self._authorize(peer)
            selectors = await self._workload(request.selectors, request.pid, peer)
            _log.debug("Subscribing to cache changes", pid=_pid(peer), request_selectors=len(selectors))
            with allowance.keeping(_size(selectors)), self._cache.subscribe(selectors) as subscription:
                async for update in subscription:
                    if update.all_identities and not told:
                        told = True
                        tell_first_update(time.perf_counter() - begun)
                    self._require_delegate(caller, peer)
                    response = _x509_response(update)
                    async with allowance.sending(len(response)):
                        yield response
                    _tell_x509(update, peer)

    def subscribe_to_x509_bundles(
        self, request: api.SubscribeToX509BundlesRequest, peer: Peer, context: Context
    ) -> AsyncIterator[bytes]:
        del request, context

        def response_of(bundles: Bundles) -> bytes:
            return api.SubscribeToX509BundlesResponse(ca_certificates=bundles.x509).SerializeToString()

        return self._bundles(peer, response_of)

    def subscribe_to_jwt_bundles(
        self, request: api.SubscribeToJWTBundlesRequest, peer: Peer, context: Context
    ) -> AsyncIterator[bytes]:
        del request, context

        def response_of(bundles: Bundles) -> bytes:
            return api.SubscribeToJWTBundlesResponse(bundles=bundles.jwt).SerializeToString()

        return self._bundles(peer, response_of)

    async def fetch_jwt_svids(
        self, request: api.FetchJWTSVIDsRequest, peer: Peer, context: Context
    ) -> api.FetchJWTSVIDsResponse:
        del context
        if not request.audience:
            raise RpcError(Code.INVALID_ARGUMENT, "audience must be specified")
        await self._authorize(peer)
        selectors = await self._workload(request.selectors, request.pid, peer)
        entries = [entry for entry in self._cache.matching(selectors) if entry.may_be_delegated]
        if not entries:
            _log.error("No identity issued", pid=_pid(peer))
            raise RpcError(Code.PERMISSION_DENIED, "no identity issued")
        response = api.FetchJWTSVIDsResponse()
        for entry in entries:
            try:
                svid = await self._jwt_svids.fetch(entry, request.audience)
            except SpireError as error:
                _log.error("Could not fetch JWT-SVID", pid=_pid(peer), spiffe_id=entry.spiffe_id, error=error)
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
            _tell("Fetched JWT SVID", peer, entry.spiffe_id, svid.expires_at)
        return response

    async def _bundles(self, peer: Peer, response_of: Callable[[Bundles], bytes]) -> AsyncIterator[bytes]:
        """All that the agent knows, now and after each change, as long as the delegate has its entry."""
        with self._limits.stream_of(peer.process) as allowance:
            caller = await self._authorize(peer)
            with self._cache.bundles.subscribe() as news:
                async for bundles in news:
                    self._require_delegate(caller, peer)
                    response = response_of(bundles)
                    async with allowance.sending(len(response)):
                        yield response

    # Who asks

    async def _authorize(self, peer: Peer) -> frozenset[Selector]:
        """The caller's selectors. Raises TemporarilyUnavailable when it cannot be attested, and RpcError."""
        caller = await self._attestation.attest(peer)
        self._require_delegate(caller, peer)
        return caller

    def _require_delegate(self, caller: frozenset[Selector], peer: Peer) -> None:
        """Raises RpcError unless an entry makes a delegate of the caller: it may have lost it since it asked."""
        entries = self._cache.matching(caller)
        if not entries:
            _log.error("No identity issued", pid=_pid(peer))
            raise RpcError(Code.PERMISSION_DENIED, "no identity issued")
        if self._delegates.isdisjoint(entry.spiffe_id for entry in entries):
            _log.error(
                "Permission denied; caller not configured as an authorized delegate.",
                pid=_pid(peer),
                num_registered_entries=len(entries),
                default_id=entries[0].spiffe_id,
            )
            raise RpcError(Code.PERMISSION_DENIED, "caller not configured as an authorized delegate")

    # For whom

    async def _workload(self, selectors: Sequence[selector_pb2.Selector], pid: int, peer: Peer) -> frozenset[Selector]:
        """The selectors that the delegate vouches for, or those of the process that it names."""
        if bool(selectors) == bool(pid):
            text = "must provide either selectors or non-zero PID, but not both"
            _log.error(f"Invalid argument; {text}", pid=_pid(peer))
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
            _log.error("Invalid argument; could not parse provided selectors", pid=_pid(peer), error=error)
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


def _tell_x509(update: WorkloadUpdate, peer: Peer) -> None:
    if _log.enabled("debug"):
        for identity in _delegated(update):
            text = "Fetched X.509 SVID for delegated identity"
            _tell(text, peer, identity.entry.spiffe_id, identity.svid.expires_at)


def _tell(message: str, peer: Peer, spiffe_id: str, expires_at: float) -> None:
    """Which delegate was given which SVID, and how many seconds that lives."""
    _log.debug(message, pid=_pid(peer), spiffe_id=spiffe_id, ttl=round(expires_at - time.time(), 3))


def _pid(peer: Peer) -> int:
    return peer.process.pid if peer.process else 0
