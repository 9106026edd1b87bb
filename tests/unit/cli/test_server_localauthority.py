"""`spire-server localauthority` and `upstreamauthority`: what they ask, what they print, how they fail."""

from __future__ import annotations

import pytest
from google.protobuf.message import Message

from generated.spire.api.server.localauthority.v1 import localauthority_pb2 as api
from tests.simulators.canned import Canned, Run
from transport.status import Code, RpcError

X509 = api.AuthorityState(authority_id="ab" * 20, expires_at=1900000000)
BELOW = api.AuthorityState(authority_id="cd" * 20, expires_at=1900003600, upstream_authority_subject_key_id="ef" * 20)
JWT = api.AuthorityState(authority_id="KeyOne", expires_at=1900000000)

SHOWN_X509 = f"""\
Active X.509 authority:
  Authority ID: {"ab" * 20}
  Expires at: 2030-03-17 17:46:40 +0000 UTC
  Upstream authority ID: No upstream authority

Prepared X.509 authority:
  Authority ID: {"cd" * 20}
  Expires at: 2030-03-17 18:46:40 +0000 UTC
  Upstream authority Subject Key ID: {"ef" * 20}

Old X.509 authority:
  No old X.509 authority found
"""
SHOWN_JWT = """\
Active JWT authority:
  Authority ID: KeyOne
  Expires at: 2030-03-17 17:46:40 +0000 UTC

Prepared JWT authority:
  No prepared JWT authority found

Old JWT authority:
  No old JWT authority found
"""


async def test_show(spire_server: Run, canned: Canned) -> None:
    canned.answers["GetX509AuthorityState"] = api.GetX509AuthorityStateResponse(active=X509, prepared=BELOW)
    canned.answers["GetJWTAuthorityState"] = api.GetJWTAuthorityStateResponse(active=JWT)
    result = await spire_server("localauthority x509 show")
    assert (result.out, result.err, result.status) == (SHOWN_X509, "", 0)
    result = await spire_server("localauthority jwt show")
    assert (result.out, result.err, result.status) == (SHOWN_JWT, "", 0)
    canned.answers["GetWITAuthorityState"] = api.GetWITAuthorityStateResponse(active=JWT)
    result = await spire_server("localauthority wit show")
    assert (result.out, result.err, result.status) == (SHOWN_JWT.replace("JWT", "WIT"), "", 0)
    result = await spire_server("localauthority jwt show", "-output", "json")
    assert result.out == (
        '{"active":{"authority_id":"KeyOne","expires_at":"1900000000","upstream_authority_subject_key_id":""}}\n'
    )


@pytest.mark.parametrize("kind", ["x509", "jwt", "wit"])
async def test_prepare(spire_server: Run, canned: Canned, kind: str) -> None:
    state, title = (X509, "X.509") if kind == "x509" else (JWT, kind.upper())
    response: Message = getattr(api, f"Prepare{kind.upper()}AuthorityResponse")(prepared_authority=state)
    canned.answers[f"Prepare{kind.upper()}Authority"] = response
    result = await spire_server(f"localauthority {kind} prepare")
    assert result.out.startswith(
        f"Prepared {title} authority:\n  Authority ID: {state.authority_id}\n  Expires at: 2030"
    )
    assert result.out.endswith("No upstream authority\n") == (kind == "x509")
    result = await spire_server(f"localauthority {kind} prepare", "-output", "json")
    assert result.out.startswith('{"prepared_authority":{"authority_id":"')
    assert result.status == 0


@pytest.mark.parametrize("kind", ["x509", "jwt", "wit"])
@pytest.mark.parametrize(("verb", "past"), [("activate", "activated"), ("taint", "tainted"), ("revoke", "revoked")])
async def test_changes(spire_server: Run, canned: Canned, kind: str, verb: str, past: str) -> None:
    method = f"{verb.capitalize()}{kind.upper()}Authority"
    title = "X.509" if kind == "x509" else kind.upper()
    state = api.AuthorityState(authority_id="the-id")
    canned.answers[method] = getattr(api, f"{method}Response")(**{f"{past}_authority": state})
    result = await spire_server(f"localauthority {kind} {verb}", "-authorityID", "the-id")
    assert result.out.startswith(
        f"{past.capitalize()} {title} authority:\n  Authority ID: the-id\n  Expires at: 1970-01-01 00:00:00 +0000 UTC\n"
    )
    assert canned.requests == [getattr(api, f"{method}Request")(authority_id="the-id")]
    result = await spire_server(f"localauthority {kind} {verb}", "-authorityID", "the-id", "-output", "json")
    assert result.out == (
        f'{{"{past}_authority":{{"authority_id":"the-id","expires_at":"0","upstream_authority_subject_key_id":""}}}}\n'
    )

    canned.requests.clear()
    result = await spire_server(f"localauthority {kind} {verb}")
    assert (result.out, result.err, result.status) == ("", "Error: an authority ID is required\n", 1)
    assert not canned.requests

    canned.answers[method] = RpcError(Code.INVALID_ARGUMENT, "unexpected authority ID")
    result = await spire_server(f"localauthority {kind} {verb}", "-authorityID", "x")
    assert (result.out, result.status) == ("", 1)
    assert result.err == (
        f"Error: could not {verb} {title} authority: rpc error: code = InvalidArgument desc = unexpected authority ID\n"
    )


async def test_failures_of_show(spire_server: Run, canned: Canned) -> None:
    for name in ("GetX509AuthorityState", "GetJWTAuthorityState"):
        canned.answers[name] = RpcError(Code.UNAVAILABLE, "server is initializing")
    text = "rpc error: code = Unavailable desc = server is initializing\n"
    assert (await spire_server("localauthority jwt show")).err == f"Error: {text}"
    assert (await spire_server("localauthority x509 show")).err == f"Error: could not get X.509 authorities: {text}"


@pytest.mark.parametrize(("verb", "past"), [("taint", "Tainted"), ("revoke", "Revoked")])
async def test_upstream_authorities(spire_server: Run, canned: Canned, verb: str, past: str) -> None:
    method = f"{verb.capitalize()}X509UpstreamAuthority"
    canned.answers[method] = getattr(api, f"{method}Response")(upstream_authority_subject_key_id="ef")
    result = await spire_server(f"upstreamauthority {verb}", "-subjectKeyID", "EF")
    assert result.out == f"{past} X.509 upstream authority:\n  Subject Key ID: ef\n"
    assert canned.requests == [getattr(api, f"{method}Request")(subject_key_id="EF")]
    result = await spire_server(f"upstreamauthority {verb}", "-subjectKeyID", "EF", "-output", "json")
    assert result.out == '{"upstream_authority_subject_key_id":"ef"}\n'
    result = await spire_server(f"upstreamauthority {verb}")
    assert result.err == "Error: the Subject Key ID of the X.509 upstream authority is required\n"
    canned.answers[method] = RpcError(Code.FAILED_PRECONDITION, "upstream authority is not configured")
    result = await spire_server(f"upstreamauthority {verb}", "-subjectKeyID", "ef")
    assert result.err == (
        f"Error: could not {verb} X.509 upstream authority: "
        "rpc error: code = FailedPrecondition desc = upstream authority is not configured\n"
    )
    assert result.status == 1
