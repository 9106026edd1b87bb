"""spire.api.server.svid.v1.SVID: SVIDs of each kind for agents' workloads, and minted ones for operators."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from cryptography import x509

from generated.spire.api.server.svid.v1 import svid_pb2 as api
from generated.spire.api.types import jwtsvid_pb2
from identity import der
from identity.spiffeid import SpiffeId, TrustDomain
from operations import times
from operations.errors import InvalidArgument, SpireError
from server.ca import checks
from server.ca.certificate_authority import CertificateAuthority, IssuedToken, IssuedX509
from server.ca.checks import ApprovedX509
from server.entries import EntryIndex, IndexedEntry
from server.rpc import convert, ids
from server.rpc.call import Call
from server.rpc.failures import code_of, failed, failing, failure
from server.rpc.wit import WitMethods
from server.trust import TrustBundles
from transport.peer import Peer
from transport.router import Context, Handler
from transport.status import Code

Result = api.BatchNewX509SVIDResponse.Result
NewX509SvidParams = api.NewX509SVIDParams


class SvidService:
    DESCRIPTOR = api.DESCRIPTOR.services_by_name["SVID"]

    def __init__(
        self,
        trust_domain: TrustDomain,
        index: EntryIndex,
        authority: CertificateAuthority,
        bundles: TrustBundles,
        *,
        jwt_disabled: bool,
        wit_svids: bool = False,
    ) -> None:
        self._trust_domain = trust_domain
        self._index = index
        self._authority = authority
        self._bundles = bundles
        self._jwt_disabled = jwt_disabled
        self._wit = WitMethods(trust_domain, index, authority, enabled=wit_svids)

    def handlers(self) -> dict[str, Handler]:
        return {
            "MintX509SVID": self.mint_x509,
            "MintJWTSVID": self.mint_jwt,
            "BatchNewX509SVID": self.batch_new_x509,
            "NewJWTSVID": self.new_jwt,
            "NewDownstreamX509CA": self.new_downstream,
            "MintWITSVID": self.mint_wit,
            "BatchNewWITSVID": self.batch_new_wit,
        }

    async def mint_x509(
        self, request: api.MintX509SVIDRequest, _peer: Peer, context: Context
    ) -> api.MintX509SVIDResponse:
        call = Call.of(context)
        call.note(csr=_digest(request.csr), ttl=request.ttl)
        if not request.csr:
            raise failure(call.log, Code.INVALID_ARGUMENT, "missing CSR")
        try:
            approved = checks.approve_mint(request.csr, self._trust_domain, request.ttl)
        except InvalidArgument as error:
            raise failure(call.log, Code.INVALID_ARGUMENT, str(error)) from error
        with failing(call.log, "failed to sign X509-SVID"):
            (issued,) = await self._authority.issue_x509([approved])
        call.succeeded(spiffe_id=issued.spiffe_id, expires_at=times.rfc3339(issued.expires_at), **_names(issued, call))
        return api.MintX509SVIDResponse(svid=convert.svid_to_proto(issued.spiffe_id, issued.chain, issued.expires_at))

    async def mint_jwt(self, request: api.MintJWTSVIDRequest, _peer: Peer, context: Context) -> api.MintJWTSVIDResponse:
        call = Call.of(context)
        self._require_jwt(call)
        call.note(ttl=request.ttl, audience=",".join(request.audience))
        with failing(call.log, "invalid SPIFFE ID", Code.INVALID_ARGUMENT):
            spiffe_id = ids.workload(self._trust_domain, request.id if request.HasField("id") else None)
        issued = await self._issue_jwt(spiffe_id, request.audience, request.ttl, call, include_jti=False)
        call.succeeded()
        return api.MintJWTSVIDResponse(svid=_jwt_to_proto(issued))

    async def batch_new_x509(
        self, request: api.BatchNewX509SVIDRequest, _peer: Peer, context: Context
    ) -> api.BatchNewX509SVIDResponse:
        call = Call.of(context)
        if not request.params:
            raise failure(call.log, Code.INVALID_ARGUMENT, "missing parameters")
        await call.limit(len(request.params), "certificate signing")
        response = api.BatchNewX509SVIDResponse()
        waiting: list[tuple[Result, NewX509SvidParams, IndexedEntry]] = []
        agent_id = str(call.agent_id())
        for params in request.params:
            result = response.results.add()
            entry = self._index.lookup(agent_id, params.entry_id)
            fault = _fault(params, entry)
            if entry is not None and fault is None:
                waiting.append((result, params, entry))
            elif fault is not None:
                code, message = fault
                log = call.log.bind(entry_id=params.entry_id)
                result.status.CopyFrom(failed(log, code, message))
        await self._issue(waiting, call)
        _audit_batch(call, request.params, response.results)
        return response

    async def _issue(self, waiting: Sequence[tuple[Result, NewX509SvidParams, IndexedEntry]], call: Call) -> None:
        """Check the CSRs and sign what passes, each with one hop however many they are."""
        requests = [(params.csr, entry.record) for _, params, entry in waiting]
        outcomes = await checks.approve_workloads(requests, self._trust_domain)
        approved: list[ApprovedX509] = []
        results: list[Result] = []
        for (result, params, _), outcome in zip(waiting, outcomes, strict=True):
            if isinstance(outcome, InvalidArgument):
                log = call.log.bind(entry_id=params.entry_id)
                result.status.CopyFrom(failed(log, Code.INVALID_ARGUMENT, str(outcome)))
            else:
                approved.append(outcome)
                results.append(result)
        await self._sign(approved, results, call)

    async def _sign(self, approved: Sequence[ApprovedX509], results: Sequence[Result], call: Call) -> None:
        """Sign the whole batch with one hop to the key; it fails as a whole, item by item."""
        if not approved:
            return
        try:
            issued = await self._authority.issue_x509(approved)
        except SpireError as error:
            status = failed(call.log, code_of(error), "failed to sign X509-SVID", error)
            for result in results:
                result.status.CopyFrom(status)
            return
        for result, svid in zip(results, issued, strict=True):
            _fill(result, svid)
        if call.log.enabled("debug"):
            for svid in issued:
                call.log.debug(
                    "Signed X509 SVID", spiffe_id=svid.spiffe_id, serial_num=svid.serial, expiration=svid.expires_at
                )

    async def new_jwt(self, request: api.NewJWTSVIDRequest, _peer: Peer, context: Context) -> api.NewJWTSVIDResponse:
        call = Call.of(context)
        call.note(entry_id=request.entry_id, audience=",".join(request.audience))
        await call.limit(1, "JWT signing request")
        self._require_jwt(call)
        entry = self._index.lookup(str(call.agent_id()), request.entry_id)
        if entry is None:
            raise failure(call.log, Code.NOT_FOUND, "entry not found or not authorized")
        record = entry.record
        with failing(call.log, "invalid SPIFFE ID", Code.INVALID_ARGUMENT):
            spiffe_id = SpiffeId.parse(record.spiffe_id)
        issued = await self._issue_jwt(
            spiffe_id, request.audience, record.jwt_svid_ttl, call, include_jti=record.jwt_svid_include_jti
        )
        call.succeeded(ttl=record.jwt_svid_ttl)
        return api.NewJWTSVIDResponse(svid=_jwt_to_proto(issued))

    async def _issue_jwt(
        self, spiffe_id: SpiffeId, audience: Sequence[str], ttl: int, call: Call, *, include_jti: bool
    ) -> IssuedToken:
        call.note(spiffe_id=spiffe_id)
        log = call.log.bind(spiffe_id=spiffe_id)
        if not audience:
            raise failure(log, Code.INVALID_ARGUMENT, "at least one audience is required")
        try:
            approved = checks.approve_jwt(spiffe_id, audience, ttl, include_jti=include_jti)
        except InvalidArgument as error:
            raise failure(log, Code.INVALID_ARGUMENT, str(error)) from error
        with failing(log, "failed to sign JWT-SVID"):
            issued = await self._authority.issue_jwt(approved)
        if log.enabled("debug"):
            log.debug("Server CA successfully signed JWT SVID", audience=list(audience), expiration=issued.expires_at)
        return issued

    async def new_downstream(
        self, request: api.NewDownstreamX509CARequest, _peer: Peer, context: Context
    ) -> api.NewDownstreamX509CAResponse:
        call = Call.of(context)
        call.note(csr=_digest(request.csr), trust_domain_id=self._trust_domain.id)
        await call.limit(1, "downstream CA signing")
        if not call.caller.downstream:
            raise failure(call.log, Code.INTERNAL, "caller is not a downstream workload")
        try:
            approved = checks.approve_downstream(request.csr, request.preferred_ttl)
        except InvalidArgument as error:
            raise failure(call.log, Code.INVALID_ARGUMENT, str(error)) from error
        with failing(call.log, "failed to sign downstream X.509 CA"):
            issued = await self._authority.issue_downstream(approved)
        call.log.debug("Signed X509 CA SVID", spiffe_id=self._trust_domain.id, expiration=issued.expires_at)
        with failing(call.log, "failed to fetch bundle"):
            bundle = await self._bundles.get(self._trust_domain)
        if bundle is None:
            raise failure(call.log, Code.NOT_FOUND, "bundle not found")
        call.succeeded(expires_at=issued.expires_at)
        return api.NewDownstreamX509CAResponse(
            ca_cert_chain=issued.chain, x509_authorities=[each.der for each in bundle.x509_authorities]
        )

    async def mint_wit(self, request: api.MintWITSVIDRequest, peer: Peer, context: Context) -> api.MintWITSVIDResponse:
        return await self._wit.mint(request, peer, context)

    async def batch_new_wit(
        self, request: api.BatchNewWITSVIDRequest, peer: Peer, context: Context
    ) -> api.BatchNewWITSVIDResponse:
        return await self._wit.batch_new(request, peer, context)

    def _require_jwt(self, call: Call) -> None:
        if self._jwt_disabled:
            raise failure(call.log, Code.UNIMPLEMENTED, "JWT functionality is disabled")


def _names(issued: IssuedX509, call: Call) -> dict[str, object]:
    """What a minted certificate is called besides, for an audit line if there is to be one."""
    if call.audit is None:
        return {}
    leaf = der.certificate(issued.chain[0])
    san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {"dns_name": ",".join(san.get_values_for_type(x509.DNSName)), "subject": leaf.subject.rfc4514_string()}


def _fault(params: NewX509SvidParams, entry: IndexedEntry | None) -> tuple[Code, str] | None:
    """Why nothing can be signed for these parameters, before the CSR is looked at."""
    if not params.entry_id:
        return Code.INVALID_ARGUMENT, "missing entry ID"
    if not params.csr:
        return Code.INVALID_ARGUMENT, "missing CSR"
    if entry is None:
        return Code.NOT_FOUND, "entry not found or not authorized"
    return None


def _fill(result: Result, issued: IssuedX509) -> None:
    svid = result.svid
    svid.id.trust_domain = issued.spiffe_id.trust_domain.name
    svid.id.path = issued.spiffe_id.path
    svid.cert_chain.extend(issued.chain)
    svid.expires_at = issued.expires_at
    result.status.message = "OK"


def _jwt_to_proto(issued: IssuedToken) -> jwtsvid_pb2.JWTSVID:
    return jwtsvid_pb2.JWTSVID(
        token=issued.token,
        id=issued.spiffe_id.to_proto(),
        expires_at=issued.expires_at,
        issued_at=issued.issued_at,
    )


def _audit_batch(call: Call, params: Sequence[NewX509SvidParams], results: Sequence[Result]) -> None:
    if call.audit is None:
        return
    for wanted, result in zip(params, results, strict=True):
        fields: dict[str, object] = {"csr": _digest(wanted.csr), "entry_id": wanted.entry_id, "spiffe_id": ""}
        if result.HasField("svid"):
            fields["spiffe_id"] = f"spiffe://{result.svid.id.trust_domain}{result.svid.id.path}"
            fields["expires_at"] = result.svid.expires_at
        call.audit.item(result.status.code, result.status.message, **fields)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if data else ""
