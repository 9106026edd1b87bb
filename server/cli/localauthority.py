"""`spire-server localauthority`: the authorities of this server, X.509, JWT and WIT, and how operators rotate them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import Message

from generated.spire.api.server.localauthority.v1 import localauthority_pb2 as api
from operations import output
from operations.errors import InvalidArgument, SpireError
from operations.flags import FlagSet, Run
from server.cli.client import calling
from transport.client import Channel
from transport.status import RpcError

SERVICE = "/spire.api.server.localauthority.v1.LocalAuthority"

AuthorityState = api.AuthorityState
Print = Callable[[AuthorityState], None]


@dataclass(frozen=True, slots=True)
class Kind:
    """`title` is how people call it, `method` how the API does."""

    title: str
    method: str
    print_state: Print


def print_x509(state: AuthorityState) -> None:
    print_jwt(state)
    if state.upstream_authority_subject_key_id:
        print(f"  Upstream authority Subject Key ID: {state.upstream_authority_subject_key_id}")
    else:
        print("  Upstream authority ID: No upstream authority")


def print_jwt(state: AuthorityState) -> None:
    print(f"  Authority ID: {state.authority_id}")
    print(f"  Expires at: {time.strftime('%Y-%m-%d %H:%M:%S +0000 UTC', time.gmtime(state.expires_at))}")


X509 = Kind("X.509", "X509Authority", print_x509)
JWT = Kind("JWT", "JWTAuthority", print_jwt)
WIT = Kind("WIT", "WITAuthority", print_jwt)


def x509_show(flags: FlagSet) -> Run:
    complaint = "could not get X.509 authorities"
    return _show(flags, X509, api.GetX509AuthorityStateRequest(), api.GetX509AuthorityStateResponse, complaint)


def jwt_show(flags: FlagSet) -> Run:
    return _show(flags, JWT, api.GetJWTAuthorityStateRequest(), api.GetJWTAuthorityStateResponse, "")


def wit_show(flags: FlagSet) -> Run:
    return _show(flags, WIT, api.GetWITAuthorityStateRequest(), api.GetWITAuthorityStateResponse, "")


def x509_prepare(flags: FlagSet) -> Run:
    return _prepare(flags, X509, api.PrepareX509AuthorityRequest(), api.PrepareX509AuthorityResponse)


def jwt_prepare(flags: FlagSet) -> Run:
    return _prepare(flags, JWT, api.PrepareJWTAuthorityRequest(), api.PrepareJWTAuthorityResponse)


def wit_prepare(flags: FlagSet) -> Run:
    return _prepare(flags, WIT, api.PrepareWITAuthorityRequest(), api.PrepareWITAuthorityResponse)


def x509_activate(flags: FlagSet) -> Run:
    return _change(flags, X509, "activate", api.ActivateX509AuthorityRequest, api.ActivateX509AuthorityResponse)


def jwt_activate(flags: FlagSet) -> Run:
    return _change(flags, JWT, "activate", api.ActivateJWTAuthorityRequest, api.ActivateJWTAuthorityResponse)


def wit_activate(flags: FlagSet) -> Run:
    return _change(flags, WIT, "activate", api.ActivateWITAuthorityRequest, api.ActivateWITAuthorityResponse)


def x509_taint(flags: FlagSet) -> Run:
    return _change(flags, X509, "taint", api.TaintX509AuthorityRequest, api.TaintX509AuthorityResponse)


def jwt_taint(flags: FlagSet) -> Run:
    return _change(flags, JWT, "taint", api.TaintJWTAuthorityRequest, api.TaintJWTAuthorityResponse)


def wit_taint(flags: FlagSet) -> Run:
    return _change(flags, WIT, "taint", api.TaintWITAuthorityRequest, api.TaintWITAuthorityResponse)


def x509_revoke(flags: FlagSet) -> Run:
    return _change(flags, X509, "revoke", api.RevokeX509AuthorityRequest, api.RevokeX509AuthorityResponse)


def jwt_revoke(flags: FlagSet) -> Run:
    return _change(flags, JWT, "revoke", api.RevokeJWTAuthorityRequest, api.RevokeJWTAuthorityResponse)


def wit_revoke(flags: FlagSet) -> Run:
    return _change(flags, WIT, "revoke", api.RevokeWITAuthorityRequest, api.RevokeWITAuthorityResponse)


_States = api.GetX509AuthorityStateResponse | api.GetJWTAuthorityStateResponse | api.GetWITAuthorityStateResponse
_Prepared = api.PrepareX509AuthorityResponse | api.PrepareJWTAuthorityResponse | api.PrepareWITAuthorityResponse


def _show(flags: FlagSet, kind: Kind, request: Message, response: type[_States], complaint: str) -> Run:
    form = output.add_flag(flags)

    async def act(server: Channel) -> None:
        found = await call(server, f"Get{kind.method}State", request, response, complaint)
        output.print_result(form.value, found, pretty=lambda: _print_states(kind, found))

    return calling(flags, act)


def _print_states(kind: Kind, found: _States) -> None:
    states = (("Active", found.active), ("Prepared", found.prepared), ("Old", found.old))
    for number, (title, state) in enumerate(states):
        if number:
            print()
        print(f"{title} {kind.title} authority:")
        if state.authority_id:
            kind.print_state(state)
        else:
            print(f"  No {title.lower()} {kind.title} authority found")


def _prepare(flags: FlagSet, kind: Kind, request: Message, response: type[_Prepared]) -> Run:
    form = output.add_flag(flags)

    async def act(server: Channel) -> None:
        complaint = f"could not prepare {kind.title} authority"
        done = await call(server, f"Prepare{kind.method}", request, response, complaint)
        output.print_result(form.value, done, pretty=lambda: _print_one(kind, "Prepared", done.prepared_authority))

    return calling(flags, act)


_Request = Callable[..., Message]
_PAST = {"activate": "activated", "taint": "tainted", "revoke": "revoked"}
_USAGE = {
    "activate": "ID of the prepared authority, as show prints it; required",
    "taint": "ID of the old authority, as show prints it; required",
    "revoke": "ID of the tainted authority; required",
}


def _change(flags: FlagSet, kind: Kind, verb: str, request: _Request, response: type[Message]) -> Run:
    authority_id = flags.string("authorityID", "", _USAGE[verb])
    form = output.add_flag(flags)

    async def act(server: Channel) -> None:
        if not authority_id.value:
            raise InvalidArgument("an authority ID is required")
        method = f"{verb.capitalize()}{kind.method}"
        complaint = f"could not {verb} {kind.title} authority"
        done = await call(server, method, request(authority_id=authority_id.value), response, complaint)
        past = _PAST[verb]
        state: AuthorityState = getattr(done, f"{past}_authority")
        output.print_result(form.value, done, pretty=lambda: _print_one(kind, past.capitalize(), state))

    return calling(flags, act)


def _print_one(kind: Kind, title: str, state: AuthorityState) -> None:
    print(f"{title} {kind.title} authority:")
    kind.print_state(state)


_R = TypeVar("_R", bound=Message)


async def call(server: Channel, method: str, request: Message, response: type[_R], complaint: str) -> _R:
    """Call a method of the service. Raises SpireError that begins with the complaint, if there is one."""
    try:
        return await server.unary(f"{SERVICE}/{method}", request, response)
    except RpcError as error:
        if not complaint:
            raise
        raise SpireError(f"{complaint}: {error}") from error
