"""spire.api.server.localauthority.v1.LocalAuthority: operators rotate, taint and revoke authorities.

What may be done to an authority depends on its state: the prepared one is activated, the old one tainted, and what is
tainted is revoked. The one that signs is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from generated.spire.api.server.localauthority.v1 import localauthority_pb2 as api
from operations.errors import InvalidArgument
from server.ca.authorities import Authorities, AuthorityInfo, infos
from server.ca.journal import Status
from server.rpc.call import Call
from server.rpc.failures import failing, failure
from transport.peer import Peer
from transport.router import Context, Handler
from transport.status import Code

_WIT_METHODS = (
    "GetWITAuthorityState",
    "PrepareWITAuthority",
    "ActivateWITAuthority",
    "TaintWITAuthority",
    "RevokeWITAuthority",
)


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
            "GetJWTAuthorityState": self.jwt_state,
            "PrepareJWTAuthority": self.prepare_jwt,
            "ActivateJWTAuthority": self.activate_jwt,
            "TaintJWTAuthority": self.taint_jwt,
            "RevokeJWTAuthority": self.revoke_jwt,
            **dict.fromkeys(_WIT_METHODS, self.wit),
        }

    async def x509_state(
        self, _request: api.GetX509AuthorityStateRequest, _peer: Peer, context: Context
    ) -> api.GetX509AuthorityStateResponse:
        call = Call.of(context)
        states = _States(call, infos(self._authorities.x509))
        states.require_active()
        call.succeeded()
        return api.GetX509AuthorityStateResponse(**states.messages())

    async def prepare_x509(
        self, _request: api.PrepareX509AuthorityRequest, _peer: Peer, context: Context
    ) -> api.PrepareX509AuthorityResponse:
        call = Call.of(context)
        _States(call, infos(self._authorities.x509)).require_active()
        with failing(call.log, "failed to prepare X.509 authority"):
            prepared = await self._authorities.prepare_x509()
        call.succeeded()
        return api.PrepareX509AuthorityResponse(prepared_authority=_message(prepared))

    async def activate_x509(
        self, request: api.ActivateX509AuthorityRequest, _peer: Peer, context: Context
    ) -> api.ActivateX509AuthorityResponse:
        call = _of_authority(context, request.authority_id)
        _States(call, infos(self._authorities.x509)).require_prepared(request.authority_id)
        with failing(call.log, "failed to activate X.509 authority"):
            activated = await self._authorities.activate_x509(request.authority_id)
        call.succeeded()
        return api.ActivateX509AuthorityResponse(activated_authority=_message(activated))

    async def taint_x509(
        self, request: api.TaintX509AuthorityRequest, _peer: Peer, context: Context
    ) -> api.TaintX509AuthorityResponse:
        call = _of_authority(context, request.authority_id)
        if self._authorities.has_upstream:
            message = "local authority can't be tainted if there is an upstream authority"
            raise failure(call.log, Code.FAILED_PRECONDITION, message)
        old = _States(call, infos(self._authorities.x509)).require_old(request.authority_id)
        with failing(call.log, "failed to taint X.509 authority", Code.INTERNAL):
            await self._authorities.taint_x509(old.authority_id)
        call.succeeded()
        call.log.info("X.509 authority tainted successfully")
        return api.TaintX509AuthorityResponse(tainted_authority=_message(old))

    async def revoke_x509(
        self, request: api.RevokeX509AuthorityRequest, _peer: Peer, context: Context
    ) -> api.RevokeX509AuthorityResponse:
        call = _of_authority(context, request.authority_id)
        if self._authorities.has_upstream:
            message = "local authority can't be revoked if there is an upstream authority"
            raise failure(call.log, Code.FAILED_PRECONDITION, message)
        with failing(call.log, "invalid authority ID", Code.INVALID_ARGUMENT):
            _States(call, infos(self._authorities.x509)).check_revocable(request.authority_id)
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
            _States(call, infos(self._authorities.x509)).check_upstream(key_id)
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
            _States(call, infos(self._authorities.x509)).check_upstream(key_id)
        with failing(call.log, "failed to revoke X.509 upstream authority", Code.INTERNAL):
            await self._authorities.revoke_x509(key_id)
        call.succeeded()
        call.log.info("X.509 upstream authority successfully revoked")
        return api.RevokeX509UpstreamAuthorityResponse(upstream_authority_subject_key_id=key_id)

    async def jwt_state(
        self, _request: api.GetJWTAuthorityStateRequest, _peer: Peer, context: Context
    ) -> api.GetJWTAuthorityStateResponse:
        call = self._jwt_call(context)
        states = _States(call, infos(self._authorities.jwt))
        states.require_active()
        call.succeeded()
        return api.GetJWTAuthorityStateResponse(**states.messages())

    async def prepare_jwt(
        self, _request: api.PrepareJWTAuthorityRequest, _peer: Peer, context: Context
    ) -> api.PrepareJWTAuthorityResponse:
        call = self._jwt_call(context)
        _States(call, infos(self._authorities.jwt)).require_active()
        with failing(call.log, "failed to prepare JWT authority"):
            prepared = await self._authorities.prepare_jwt()
        call.succeeded()
        return api.PrepareJWTAuthorityResponse(prepared_authority=_message(prepared))

    async def activate_jwt(
        self, request: api.ActivateJWTAuthorityRequest, _peer: Peer, context: Context
    ) -> api.ActivateJWTAuthorityResponse:
        call = self._jwt_call(context, request.authority_id)
        _States(call, infos(self._authorities.jwt)).require_prepared(request.authority_id)
        with failing(call.log, "failed to activate JWT authority"):
            activated = await self._authorities.activate_jwt(request.authority_id)
        call.succeeded()
        return api.ActivateJWTAuthorityResponse(activated_authority=_message(activated))

    async def taint_jwt(
        self, request: api.TaintJWTAuthorityRequest, _peer: Peer, context: Context
    ) -> api.TaintJWTAuthorityResponse:
        call = self._jwt_call(context, request.authority_id)
        old = _States(call, infos(self._authorities.jwt)).require_old(request.authority_id)
        with failing(call.log, "failed to taint JWT authority", Code.INTERNAL):
            await self._authorities.taint_jwt(old.authority_id)
        call.succeeded()
        call.log.info("JWT authority tainted successfully")
        return api.TaintJWTAuthorityResponse(tainted_authority=api.AuthorityState(authority_id=old.authority_id))

    async def revoke_jwt(
        self, request: api.RevokeJWTAuthorityRequest, _peer: Peer, context: Context
    ) -> api.RevokeJWTAuthorityResponse:
        call = self._jwt_call(context, request.authority_id)
        with failing(call.log, "invalid authority ID", Code.INVALID_ARGUMENT):
            published = {key.key_id for key in await self._authorities.published_jwt_keys()}
            _States(call, infos(self._authorities.jwt)).check_jwt_revocable(request.authority_id, published)
        with failing(call.log, "failed to revoke JWT authority", Code.INTERNAL):
            await self._authorities.revoke_jwt(request.authority_id)
        call.succeeded()
        call.log.info("JWT authority revoked successfully")
        return api.RevokeJWTAuthorityResponse(revoked_authority=api.AuthorityState(authority_id=request.authority_id))

    async def wit(self, _request: object, _peer: Peer, context: Context) -> api.GetWITAuthorityStateResponse:
        message = "WIT-SVID functionality is not yet implemented"
        raise failure(Call.of(context).log, Code.UNIMPLEMENTED, message)

    def _jwt_call(self, context: Context, authority_id: str = "") -> Call:
        call = _of_authority(context, authority_id)
        if self._authorities.jwt_disabled:
            raise failure(call.log, Code.UNIMPLEMENTED, "JWT functionality is disabled")
        return call

    def _of_upstream(self, context: Context, key_id: str) -> Call:
        call = _naming(Call.of(context), subject_key_id=key_id)
        if not self._authorities.has_upstream:
            raise failure(call.log, Code.FAILED_PRECONDITION, "upstream authority is not configured")
        return call


class _States:
    """The authorities of one kind, and what may be done to them. Failures are those of one call."""

    def __init__(self, call: Call, authorities: Sequence[AuthorityInfo]) -> None:
        self._log = call.log
        by_status = {each.status: each for each in authorities}
        self._by_status: Mapping[Status, AuthorityInfo] = by_status
        self._active = by_status.get(Status.ACTIVE)
        # As in SPIRE there is one beside the active one: the old one until another is prepared.
        self._other = by_status.get(Status.PREPARED) or by_status.get(Status.OLD)

    def messages(self) -> dict[str, api.AuthorityState]:
        return {each.status.value: _message(each) for each in (self._active, self._other) if each is not None}

    def require_active(self) -> None:
        if self._active is None:
            raise failure(self._log, Code.UNAVAILABLE, "server is initializing")

    def require_prepared(self, authority_id: str) -> None:
        other = self._named(authority_id)
        if other.status is not Status.PREPARED:
            raise failure(self._log, Code.INTERNAL, "only Prepared authorities can be activated", _unsupported(other))

    def require_old(self, authority_id: str) -> AuthorityInfo:
        if authority_id and self._is_active(authority_id):
            raise failure(self._log, Code.INVALID_ARGUMENT, "unable to taint current local authority")
        other = self._named(authority_id)
        if other.status is not Status.OLD:
            message = "only Old local authorities can be tainted"
            raise failure(self._log, Code.INVALID_ARGUMENT, message, _unsupported(other))
        return other

    def check_revocable(self, authority_id: str) -> None:
        """Raises InvalidArgument."""
        if not authority_id:
            raise InvalidArgument("no authority ID provided")
        if self._is_active(authority_id):
            raise InvalidArgument("unable to use current authority")
        other = self._other
        if other is None or other.authority_id != authority_id or other.status is not Status.OLD:
            raise InvalidArgument("only Old local authority can be revoked")

    def check_jwt_revocable(self, authority_id: str, published: set[str]) -> None:
        """Also one that this server knows by the bundle only. Raises InvalidArgument."""
        if not authority_id:
            raise InvalidArgument("no authority ID provided")
        if self._other is not None and self._other.authority_id == authority_id:
            if self._other.status is Status.PREPARED:
                raise InvalidArgument("unable to use a prepared key")
            return
        if self._is_active(authority_id):
            raise InvalidArgument("unable to use current authority")
        if authority_id not in published:
            raise InvalidArgument("no JWT authority found with provided authority ID")

    def check_upstream(self, key_id: str) -> None:
        """Whether an upstream authority signed the old authority, and no other. Raises InvalidArgument."""
        if not key_id:
            raise InvalidArgument("no subject key ID provided")
        if self._active is not None and self._active.upstream_id == key_id:
            raise InvalidArgument("unable to use upstream authority singing current authority")
        if self._other is None or self._other.upstream_id != key_id:
            raise InvalidArgument("upstream authority didn't sign the old local authority")
        if self._other.status is Status.PREPARED:
            raise InvalidArgument("only upstream authorities signing an old authority can be used")

    def _is_active(self, authority_id: str) -> bool:
        return self._active is not None and self._active.authority_id == authority_id

    def _named(self, authority_id: str) -> AuthorityInfo:
        if not authority_id:
            raise failure(self._log, Code.INVALID_ARGUMENT, "no authority ID provided")
        if self._other is None or self._other.authority_id != authority_id:
            raise failure(self._log, Code.INVALID_ARGUMENT, "unexpected authority ID")
        return self._other


def _unsupported(authority: AuthorityInfo) -> InvalidArgument:
    return InvalidArgument(f"unsupported local authority status: {authority.status.name}")


def _message(authority: AuthorityInfo) -> api.AuthorityState:
    return api.AuthorityState(
        authority_id=authority.authority_id,
        expires_at=authority.expires_at,
        upstream_authority_subject_key_id=authority.upstream_id,
    )


def _of_authority(context: Context, authority_id: str) -> Call:
    return _naming(Call.of(context), local_authority_id=authority_id)


def _naming(call: Call, **fields: str) -> Call:
    """The call with fields, where they are not empty, in its log lines and its audit line."""
    given = {name: value for name, value in fields.items() if value}
    call.note(**given)
    call.log = call.log.bind(**given)
    return call
