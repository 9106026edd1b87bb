"""`spire-server upstreamauthority`: the authorities that sign this server's own."""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf.message import Message

from generated.spire.api.server.localauthority.v1 import localauthority_pb2 as api
from operations import output
from operations.errors import InvalidArgument
from operations.flags import FlagSet, Run
from server.cli.client import calling
from server.cli.localauthority import call
from transport.client import Channel

_Response = api.TaintX509UpstreamAuthorityResponse | api.RevokeX509UpstreamAuthorityResponse


def taint(flags: FlagSet) -> Run:
    usage = "Subject key identifier, in hex, of the CA certificate that signed the old X.509 authority; required"
    request, response = api.TaintX509UpstreamAuthorityRequest, api.TaintX509UpstreamAuthorityResponse
    return _change(flags, "taint", "Tainted", usage, request, response)


def revoke(flags: FlagSet) -> Run:
    usage = "Subject key identifier, in hex, of the CA certificate that was tainted; required"
    request, response = api.RevokeX509UpstreamAuthorityRequest, api.RevokeX509UpstreamAuthorityResponse
    return _change(flags, "revoke", "Revoked", usage, request, response)


def _change(
    flags: FlagSet, verb: str, past: str, usage: str, request: Callable[..., Message], response: type[_Response]
) -> Run:
    key_id = flags.string("subjectKeyID", "", usage)
    form = output.add_flag(flags)

    async def act(server: Channel) -> None:
        if not key_id.value:
            raise InvalidArgument("the Subject Key ID of the X.509 upstream authority is required")
        complaint = f"could not {verb} X.509 upstream authority"
        method = f"{verb.capitalize()}X509UpstreamAuthority"
        done = await call(server, method, request(subject_key_id=key_id.value), response, complaint)

        def pretty() -> None:
            print(f"{past} X.509 upstream authority:")
            print(f"  Subject Key ID: {done.upstream_authority_subject_key_id}")

        output.print_result(form.value, done, pretty=pretty)

    return calling(flags, act)
