"""spire.api.server.localauthority.v1.LocalAuthority: operators rotate, taint and revoke authorities.

What may be done to an authority depends on its state: the prepared one is activated, the old one tainted, and what is
tainted is revoked. The one that signs is left alone.
"""

from __future__ import annotations

from generated.spire.api.server.localauthority.v1 import localauthority_pb2 as api
from server.ca.authorities import Authorities, infos
from server.rpc.authority_states import States, message, naming, of_authority
from server.rpc.call import Call
from server.rpc.failures import failing, failure
from server.rpc.key_authorities import JWT, WIT, KeyMethods
from transport.peer import Peer
from transport.router import Context, Handler
from transport.status import Code


class LocalAuthorityService:
    DESCRIPTOR = api.DESCRIPTOR.services_by_name["LocalAuthority"]

    def __init__(self, authorities: Authorities) -> None:
        self._authorities = authorities

    def handlers(self) -> dict[str, Handler]:
        return {
            "GetX509AuthorityState": self.x509_state,
            "PrepareX509Authority": self.prepare_x509,
            "ActivateX509Authority": self.activate_x509,
            "TaintX509Authority": self.taint_x509,
            "RevokeX509Authority": self.revoke_x509,
            "TaintX509UpstreamAuthority": self.taint_upstream,
            "RevokeX509UpstreamAuthority": self.revoke_upstream,
            **KeyMethods(JWT, lambda: self._authorities.jwt).handlers(),
            **KeyMethods(WIT, lambda: self._authorities.wit).handlers(),
        }

    async def x509_state(
        self, _request: api.GetX509AuthorityStateRequest, _peer: Peer, context: Context
    ) -> api.GetX509AuthorityStateResponse:
        call = Call.of(context)
        states = States(call, infos(self._authorities.x509))
        states.require_active()
        call.succeeded()
        return api.GetX509AuthorityStateResponse(**states.messages())

    async def prepare_x509(
        self, _request: api.PrepareX509AuthorityRequest, _peer: Peer, context: Context
    ) -> api.PrepareX509AuthorityResponse:
        call = Call.of(context)
        States(call, infos(self._authorities.x509)).require_active()
        with failing(call.log, "failed to prepare X.509 authority"):
            prepared = await self._authorities.prepare_x509()
        call.succeeded()
        return api.PrepareX509AuthorityResponse(prepared_authority=message(prepared))

    async def activate_x509(
        self, request: api.ActivateX509AuthorityRequest, _peer: Peer, context: Context
    ) -> api.ActivateX509AuthorityResponse:
        call = of_authority(context, request.authority_id)
        States(call, infos(self._authorities.x509)).require_prepared(request.authority_id)
        with failing(call.log, "failed to activate X.509 authority"):
            activated = await self._authorities.activate_x509(request.authority_id)
        call.succeeded()
        return api.ActivateX509AuthorityResponse(activated_authority=message(activated))

    async def taint_x509(
        self, request: api.TaintX509AuthorityRequest, _peer: Peer, context: Context
    ) -> api.TaintX509AuthorityResponse:
        call = of_authority(context, request.authority_id)
        if self._authorities.has_upstream:
            text = "local authority can't be tainted if there is an upstream authority"
            raise failure(call.log, Code.FAILED_PRECONDITION, text)
        old = States(call, infos(self._authorities.x509)).require_old(request.authority_id)
        with failing(call.log, "failed to taint X.509 authority", Code.INTERNAL):
            await self._authorities.taint_x509(old.authority_id)
        call.succeeded()
        call.log.info("X.509 authority tainted successfully")
        return api.TaintX509AuthorityResponse(tainted_authority=message(old))

    async def revoke_x509(
        self, request: api.RevokeX509AuthorityRequest, _peer: Peer, context: Context
    ) -> api.RevokeX509AuthorityResponse:
        call = of_authority(context, request.authority_id)
        if self._authorities.has_upstream:
            text = "local authority can't be revoked if there is an upstream authority"
            raise failure(call.log, Code.FAILED_PRECONDITION, text)
        with failing(call.log, "invalid authority ID", Code.INVALID_ARGUMENT):
            States(call, infos(self._authorities.x509)).check_revocable(request.authority_id)
        with failing(call.log, "failed to revoke X.509 authority", Code.INTERNAL):
            await self._authorities.revoke_x509(request.authority_id)
        call.succeeded()
        call.log.info("X.509 authority revoked successfully")
        return api.RevokeX509AuthorityResponse(revoked_authority=api.AuthorityState(authority_id=request.authority_id))

    async def taint_upstream(
        self, request: api.TaintX509UpstreamAuthorityRequest, _peer: Peer, context: Context
    ) -> api.TaintX509UpstreamAuthorityResponse:
        call = self._of_upstream(context, request.subject_key_id)
        key_id = request.subject_key_id.lower()
        with failing(call.log, "provided subject key id is not valid", Code.INVALID_ARGUMENT):
            States(call, infos(self._authorities.x509)).check_upstream(key_id)
        with failing(call.log, "failed to taint upstream authority", Code.INTERNAL):
            await self._authorities.taint_x509(key_id)
        call.succeeded()
        call.log.info("X.509 upstream authority tainted successfully")
        return api.TaintX509UpstreamAuthorityResponse(upstream_authority_subject_key_id=key_id)

    async def revoke_upstream(
        self, request: api.RevokeX509UpstreamAuthorityRequest, _peer: Peer, context: Context
    ) -> api.RevokeX509UpstreamAuthorityResponse:
        call = self._of_upstream(context, request.subject_key_id)
        key_id = request.subject_key_id.lower()
        with failing(call.log, "invalid subject key ID", Code.INVALID_ARGUMENT):
            States(call, infos(self._authorities.x509)).check_upstream(key_id)
        with failing(call.log, "failed to revoke X.509 upstream authority", Code.INTERNAL):
            await self._authorities.revoke_x509(key_id)
        call.succeeded()
        call.log.info("X.509 upstream authority successfully revoked")
        return api.RevokeX509UpstreamAuthorityResponse(upstream_authority_subject_key_id=key_id)

    def _of_upstream(self, context: Context, key_id: str) -> Call:
        call = naming(Call.of(context), subject_key_id=key_id)
        if not self._authorities.has_upstream:
            raise failure(call.log, Code.FAILED_PRECONDITION, "upstream authority is not configured")
        return call
