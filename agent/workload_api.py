"""The SPIFFE Workload API (SPIFFE Workload API standard; SpiffeWorkloadAPI in its protobuf definition)."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from google.protobuf import json_format, struct_pb2

from agent.cache import X509Cache
from agent.entries import without_duplicate_hints
from agent.jwt_svids import JwtSvids
from agent.logged_selectors import loggable
from agent.rate_limits import Admission
from agent.stream_limits import StreamLimits
from agent.workload_update import WorkloadUpdate
from generated.spiffe.workload import workload_pb2
from identity.selectors import Selector
from identity.spiffeid import SpiffeId, TrustDomain
from operations import logs
from operations.errors import InvalidArgument, Refused, SpireError
from transport.peer import Peer
from transport.router import Context, Method, Router
from transport.status import Code, RpcError

SERVICE = workload_pb2.DESCRIPTOR.services_by_name["SpiffeWorkloadAPI"]
SECURITY_HEADER = "workload.spiffe.io"

_LONGEST_LOGGED = 256
_ALWAYS_SHOWN = frozenset(("aud", "exp", "sub"))

_log = logs.get("endpoints")


@dataclass(frozen=True, slots=True)
class Settings:
    trust_domain: TrustDomain
    allow_unauthenticated_verifiers: bool = False
    allowed_foreign_jwt_claims: frozenset[str] = frozenset()
    log_selectors: tuple[str, ...] = ()


async def require_security_header(method: Method, peer: Peer, context: Context) -> None:
    """Refuse calls that a browser or a proxy was tricked into (Workload API standard, 3)."""
    del peer
    if method.service == SERVICE.full_name and context.metadata.get(SECURITY_HEADER) != "true":
        raise RpcError(Code.INVALID_ARGUMENT, "security header missing from request")


class WorkloadApi:
    def __init__(
        self,
        settings: Settings,
        admission: Admission,
        cache: X509Cache,
        jwt_svids: JwtSvids,
        limits: StreamLimits | None = None,
    ) -> None:
        """`limits` are shared with other APIs on the socket."""
        self._settings = settings
        self._admission = admission
        self._cache = cache
        self._jwt_svids = jwt_svids
        self._limits = limits or StreamLimits()

    def add_to(self, router: Router) -> None:
        router.add(
            SERVICE,
            {
                "FetchX509SVID": self.fetch_x509_svid,
                "FetchX509Bundles": self.fetch_x509_bundles,
                "FetchJWTSVID": self.fetch_jwt_svid,
                "FetchJWTBundles": self.fetch_jwt_bundles,
                "ValidateJWTSVID": self.validate_jwt_svid,
            },
        )

    def fetch_x509_svid(
        self, request: workload_pb2.X509SVIDRequest, peer: Peer, context: Context
    ) -> AsyncIterator[bytes]:
        del request

        def response_of(update: WorkloadUpdate) -> bytes:
            for identity in update.identities if _log.enabled("debug") else ():
                spiffe_id, expires_at = identity.entry.spiffe_id, identity.svid.expires_at
                _tell("Fetched X.509 SVID", "FetchX509SVID", peer, spiffe_id, expires_at)
            return update.x509_svid_response

        return self._stream(peer, context, response_of, identity_needed=True, svids=True)

    def fetch_x509_bundles(
        self, request: workload_pb2.X509BundlesRequest, peer: Peer, context: Context
    ) -> AsyncIterator[bytes]:
        del request
        needed = not self._settings.allow_unauthenticated_verifiers
        return self._stream(peer, context, lambda update: update.x509_bundles_response, identity_needed=needed)

    def fetch_jwt_bundles(
        self, request: workload_pb2.JWTBundlesRequest, peer: Peer, context: Context
    ) -> AsyncIterator[bytes]:
        del request
        needed = not self._settings.allow_unauthenticated_verifiers
        return self._stream(peer, context, lambda update: update.jwt_bundles_response, identity_needed=needed)

    async def fetch_jwt_svid(
        self, request: workload_pb2.JWTSVIDRequest, peer: Peer, context: Context
    ) -> workload_pb2.JWTSVIDResponse:
        if not request.audience:
            raise RpcError(Code.INVALID_ARGUMENT, "audience must be specified")
        if request.spiffe_id:
            _check_requested(request.spiffe_id)
        selectors = await self._admission.attest(peer, context)
        entries = without_duplicate_hints(self._cache.matching(selectors))
        if request.spiffe_id:
            entries = [entry for entry in entries if entry.spiffe_id == request.spiffe_id]
        if not entries:
            raise self._no_identity(peer, selectors)
        response = workload_pb2.JWTSVIDResponse()
        for entry in entries:
            try:
                svid = await self._jwt_svids.fetch(entry, request.audience)
            except SpireError as error:
                _log.error("Could not fetch JWT-SVID", spiffe_id=entry.spiffe_id, error=error)
                raise RpcError(Code.UNAVAILABLE, f"could not fetch JWT-SVID: {error}") from error
            response.svids.add(spiffe_id=entry.spiffe_id, svid=svid.token, hint=entry.hint)
            _tell("Fetched JWT SVID", "FetchJWTSVID", peer, entry.spiffe_id, svid.expires_at)
        return response

    async def validate_jwt_svid(
        self, request: workload_pb2.ValidateJWTSVIDRequest, peer: Peer, context: Context
    ) -> workload_pb2.ValidateJWTSVIDResponse:
        """A caller without any identity may ask too; it knows the trust domain's own bundle."""
        if not request.audience:
            raise RpcError(Code.INVALID_ARGUMENT, "audience must be specified")
        if not request.svid:
            raise RpcError(Code.INVALID_ARGUMENT, "svid must be specified")
        # Only this call needs the libraries for tokens.
        from identity import jwtsvid

        update = self._cache.peek(await self._admission.attest(peer, context))
        authorities = {bundle.trust_domain: bundle.jwt_authorities for bundle in update.bundles}
        try:
            svid = jwtsvid.verify(request.svid, authorities, request.audience, datetime.now(UTC))
        except (InvalidArgument, Refused) as error:
            # What a workload sends must not fill the disk.
            _log.warning("Failed to validate JWT", audience=request.audience[:_LONGEST_LOGGED], error=error)
            raise RpcError(Code.INVALID_ARGUMENT, str(error)) from error
        claims = self._shown(svid.id, svid.claims)
        # RFC 7519, 4.1.3 allows a single audience to be a string; callers are given a list.
        claims["aud"] = list(svid.audience)
        return workload_pb2.ValidateJWTSVIDResponse(spiffe_id=str(svid.id), claims=_struct(claims))

    def _shown(self, spiffe_id: SpiffeId, claims: Mapping[str, Any]) -> dict[str, Any]:
        """All claims of our own trust domain's tokens, the allowed ones of others'."""
        if spiffe_id.trust_domain == self._settings.trust_domain:
            return dict(claims)
        allowed = self._settings.allowed_foreign_jwt_claims | _ALWAYS_SHOWN
        return {name: value for name, value in claims.items() if name in allowed}

    async def _stream(
        self,
        peer: Peer,
        context: Context,
        response_of: Callable[[WorkloadUpdate], bytes],
        *,
        identity_needed: bool,
        svids: bool = False,
    ) -> AsyncIterator[bytes]:
        """The response now and after each change of it, until the workload has no identity any more."""
        sent: bytes | None = None
        with self._limits.stream_of(peer.process) as allowance:
            selectors = await self._admission.attest(peer, context)
            with self._cache.subscribe(selectors) as subscription:
                subscription.bundles_will_do = not svids
                async for update in subscription:
                    if identity_needed and update.complete and not update.identities:
                        raise self._no_identity(peer, selectors)
                    response = response_of(update)
                    if response != sent:
                        async with allowance.sending(len(response)):
                            yield response
                        sent = response

    def _no_identity(self, peer: Peer, selectors: frozenset[Selector]) -> RpcError:
        pid = peer.process.pid if peer.process else 0
        # The agent asks itself for its health, which is nothing to write down.
        if pid != os.getpid():
            shown = loggable(selectors, self._settings.log_selectors)
            _log.error("No identity issued", registered=False, pid=pid, **({"selectors": shown} if shown else {}))
        return RpcError(Code.PERMISSION_DENIED, "no identity issued")


def _tell(message: str, method: str, peer: Peer, spiffe_id: str, expires_at: float) -> None:
    """Which process was given which SVID, and how many seconds that lives."""
    pid = peer.process.pid if peer.process else 0
    ttl = round(expires_at - time.time(), 3)
    _log.debug(message, service="WorkloadAPI", method=method, pid=pid, registered=True, spiffe_id=spiffe_id, ttl=ttl)


def _check_requested(spiffe_id: str) -> None:
    try:
        SpiffeId.parse(spiffe_id)
    except InvalidArgument as error:
        raise RpcError(Code.INVALID_ARGUMENT, f"invalid requested SPIFFE ID: {error}") from error


def _struct(claims: dict[str, Any]) -> struct_pb2.Struct:
    struct = struct_pb2.Struct()
    try:
        json_format.ParseDict(claims, struct)
    except json_format.ParseError as error:
        raise RpcError(Code.INVALID_ARGUMENT, f"the token's claims cannot be returned: {error}") from error
    return struct
