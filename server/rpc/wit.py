"""The methods of the SVID service for WIT-SVIDs, which bind a workload's identity to a key that it signs with.

As in SPIRE they are behind the feature flag wit-svid, and no agent asks for them yet.
"""

from __future__ import annotations

from collections.abc import Sequence

from generated.spire.api.server.svid.v1 import svid_pb2 as api
from generated.spire.api.types import witsvid_pb2
from identity.spiffeid import TrustDomain
from operations.errors import InvalidArgument, SpireError
from server.ca import checks
from server.ca.certificate_authority import ApprovedWit, CertificateAuthority, IssuedToken
from server.entries import EntryIndex, IndexedEntry
from server.rpc import ids
from server.rpc.call import Call
from server.rpc.failures import code_of, failed, failing, failure
from transport.peer import Peer
from transport.router import Context
from transport.status import Code

Result = api.BatchNewWITSVIDResponse.Result
Params = api.NewWITSVIDParams


class WitMethods:
    def __init__(
        self, trust_domain: TrustDomain, index: EntryIndex, authority: CertificateAuthority, *, enabled: bool
    ) -> None:
        self._trust_domain = trust_domain
        self._index = index
        self._authority = authority
        self._enabled = enabled

    async def mint(self, request: api.MintWITSVIDRequest, _peer: Peer, context: Context) -> api.MintWITSVIDResponse:
        call = Call.of(context)
        self._require_enabled(call)
        call.note(ttl=request.ttl)
        with failing(call.log, "invalid SPIFFE ID", Code.INVALID_ARGUMENT):
            spiffe_id = ids.workload(self._trust_domain, request.id if request.HasField("id") else None)
        call.note(spiffe_id=spiffe_id)
        log = call.log.bind(spiffe_id=spiffe_id)
        try:
            approved = checks.approve_wit(spiffe_id, request.public_key, request.signing_algorithm, request.ttl)
        except InvalidArgument as error:
            raise failure(log, Code.INVALID_ARGUMENT, str(error)) from error
        with failing(log, "failed to sign WIT-SVID"):
            (issued,) = await self._authority.issue_wits([approved])
        call.succeeded()
        log.debug("Server CA successfully signed WIT-SVID", expiration=issued.expires_at)
        return api.MintWITSVIDResponse(svid=_to_proto(issued))

    async def batch_new(
        self, request: api.BatchNewWITSVIDRequest, _peer: Peer, context: Context
    ) -> api.BatchNewWITSVIDResponse:
        call = Call.of(context)
        if not request.params:
            raise failure(call.log, Code.INVALID_ARGUMENT, "missing parameters")
        await call.limit(len(request.params), "certificate signing")
        self._require_enabled(call)
        agent_id = str(call.agent_id())

        def approve(params: Params) -> ApprovedWit | tuple[Code, str]:
            return self._approve(params, self._index.lookup(agent_id, params.entry_id))

        outcomes = await checks.in_chunks(approve, request.params)
        response = api.BatchNewWITSVIDResponse()
        approved: list[tuple[Result, ApprovedWit]] = []
        for params, outcome in zip(request.params, outcomes, strict=True):
            result = response.results.add()
            if isinstance(outcome, ApprovedWit):
                approved.append((result, outcome))
            else:
                result.status.CopyFrom(failed(call.log.bind(entry_id=params.entry_id), *outcome))
        await self._sign(approved, call)
        _audit(call, request.params, response.results)
        return response

    def _approve(self, params: Params, entry: IndexedEntry | None) -> ApprovedWit | tuple[Code, str]:
        if not params.entry_id:
            return Code.INVALID_ARGUMENT, "missing entry ID"
        if not params.public_key:
            return Code.INVALID_ARGUMENT, "missing public key"
        if entry is None:
            return Code.NOT_FOUND, "entry not found or not authorized"
        try:
            return checks.approve_workload_wit(
                params.public_key, params.signing_algorithm, entry.record, self._trust_domain
            )
        except InvalidArgument as error:
            return Code.INVALID_ARGUMENT, str(error)

    async def _sign(self, approved: Sequence[tuple[Result, ApprovedWit]], call: Call) -> None:
        """Sign the whole batch with one hop to the key; it fails as a whole, item by item."""
        if not approved:
            return
        try:
            issued = await self._authority.issue_wits([each for _, each in approved])
        except SpireError as error:
            status = failed(call.log, code_of(error), "failed to sign WIT-SVID", error)
            for result, _ in approved:
                result.status.CopyFrom(status)
            return
        for (result, _), svid in zip(approved, issued, strict=True):
            result.svid.CopyFrom(_to_proto(svid))
            result.status.message = "OK"

    def _require_enabled(self, call: Call) -> None:
        if not self._enabled:
            raise failure(call.log, Code.UNIMPLEMENTED, "WIT functionality is disabled")


def _to_proto(issued: IssuedToken) -> witsvid_pb2.WITSVID:
    return witsvid_pb2.WITSVID(
        token=issued.token,
        id=issued.spiffe_id.to_proto(),
        expires_at=issued.expires_at,
        issued_at=issued.issued_at,
    )


def _audit(call: Call, params: Sequence[Params], results: Sequence[Result]) -> None:
    if call.audit is None:
        return
    for wanted, result in zip(params, results, strict=True):
        fields: dict[str, object] = {"entry_id": wanted.entry_id, "spiffe_id": ""}
        if result.HasField("svid"):
            fields["spiffe_id"] = f"spiffe://{result.svid.id.trust_domain}{result.svid.id.path}"
            fields["expires_at"] = result.svid.expires_at
        call.audit.item(result.status.code, result.status.message, **fields)
