"""The methods of LocalAuthority for JWT authorities and for WIT authorities: the same, but for their messages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.message import Message

from generated.spire.api.server.localauthority.v1 import localauthority_pb2 as api
from server.ca.token_authorities import TokenAuthorities
from server.rpc.authority_states import States, message, of_authority
from server.rpc.call import Call
from server.rpc.failures import failing, failure
from transport.peer import Peer
from transport.router import Context, Handler
from transport.status import Code

_Response = Callable[..., Message]


class _Named(Protocol):
    """A request that names an authority."""

    @property
    def authority_id(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Messages:
    """One kind's responses, and its name in the methods'. `disabled` is what they answer where it is turned off."""

    title: str
    state: _Response
    prepared: _Response
    activated: _Response
    tainted: _Response
    revoked: _Response
    disabled: str


JWT = Messages(
    "JWT",
    api.GetJWTAuthorityStateResponse,
    api.PrepareJWTAuthorityResponse,
    api.ActivateJWTAuthorityResponse,
    api.TaintJWTAuthorityResponse,
    api.RevokeJWTAuthorityResponse,
    "JWT functionality is disabled",
)
# SPIRE 1.16 answers so even where WIT-SVIDs are turned on.
WIT = Messages(
    "WIT",
    api.GetWITAuthorityStateResponse,
    api.PrepareWITAuthorityResponse,
    api.ActivateWITAuthorityResponse,
    api.TaintWITAuthorityResponse,
    api.RevokeWITAuthorityResponse,
    "WIT-SVID functionality is not yet implemented",
)


class KeyMethods:
    def __init__(self, messages: Messages, authorities: Callable[[], TokenAuthorities]) -> None:
        self._messages = messages
        self._authorities = authorities
        self._title = messages.title

    def handlers(self) -> dict[str, Handler]:
        return {
            f"Get{self._title}AuthorityState": self.state,
            f"Prepare{self._title}Authority": self.prepare,
            f"Activate{self._title}Authority": self.activate,
            f"Taint{self._title}Authority": self.taint,
            f"Revoke{self._title}Authority": self.revoke,
        }

    async def state(self, _request: Message, _peer: Peer, context: Context) -> Message:
        call = self._call(context)
        states = self._states(call)
        states.require_active()
        call.succeeded()
        return self._messages.state(**states.messages())

    async def prepare(self, _request: Message, _peer: Peer, context: Context) -> Message:
        call = self._call(context)
        self._states(call).require_active()
        with failing(call.log, f"failed to prepare {self._title} authority"):
            prepared = await self._authorities().prepare()
        call.succeeded()
        return self._messages.prepared(prepared_authority=message(prepared))

    async def activate(self, request: _Named, _peer: Peer, context: Context) -> Message:
        call = self._call(context, request.authority_id)
        self._states(call).require_prepared(request.authority_id)
        with failing(call.log, f"failed to activate {self._title} authority"):
            activated = await self._authorities().activate(request.authority_id)
        call.succeeded()
        return self._messages.activated(activated_authority=message(activated))

    async def taint(self, request: _Named, _peer: Peer, context: Context) -> Message:
        call = self._call(context, request.authority_id)
        old = self._states(call).require_old(request.authority_id)
        with failing(call.log, f"failed to taint {self._title} authority", Code.INTERNAL):
            await self._authorities().taint(old.authority_id)
        call.succeeded()
        call.log.info(f"{self._title} authority tainted successfully")
        return self._messages.tainted(tainted_authority=api.AuthorityState(authority_id=old.authority_id))

    async def revoke(self, request: _Named, _peer: Peer, context: Context) -> Message:
        call = self._call(context, request.authority_id)
        with failing(call.log, "invalid authority ID", Code.INVALID_ARGUMENT):
            published = {key.key_id for key in await self._authorities().published()}
            self._states(call).check_key_revocable(request.authority_id, published, self._title)
        with failing(call.log, f"failed to revoke {self._title} authority", Code.INTERNAL):
            await self._authorities().revoke(request.authority_id)
        call.succeeded()
        call.log.info(f"{self._title} authority revoked successfully")
        return self._messages.revoked(revoked_authority=api.AuthorityState(authority_id=request.authority_id))

    def _states(self, call: Call) -> States:
        return States(call, self._authorities().infos())

    def _call(self, context: Context, authority_id: str = "") -> Call:
        call = of_authority(context, authority_id)
        if not self._authorities().enabled:
            raise failure(call.log, Code.UNIMPLEMENTED, self._messages.disabled)
        return call
