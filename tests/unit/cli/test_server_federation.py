"""`spire-server federation …`: what is asked of the server, and the whole output."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import empty_pb2
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from generated.spire.api.server.trustdomain.v1 import trustdomain_pb2 as api
from generated.spire.api.types import bundle_pb2, status_pb2
from generated.spire.api.types import federationrelationship_pb2 as types
from identity import bundles
from identity.bundles import Bundle, JwtAuthority, X509Authority
from identity.spiffeid import TrustDomain
from operations.errors import InvalidArgument
from server.cli import federation_file
from tests.simulators import pki
from tests.simulators.canned import Canned, Run
from transport.status import Code, RpcError

CERTIFICATE = pki.Authority.root("spiffe://other.test").der
DOCUMENT = Bundle(
    TrustDomain("other.test"), (X509Authority(CERTIFICATE),), (JwtAuthority("key", pki.spki(pki.ec_key())),), 60
)
WEB = types.FederationRelationship(
    trust_domain="web.test", bundle_endpoint_url="https://web.test/b", https_web=types.HTTPSWebProfile()
)
BY_SVID = types.FederationRelationship(
    trust_domain="other.test",
    bundle_endpoint_url="https://other.test/b",
    https_spiffe=types.HTTPSSPIFFEProfile(endpoint_spiffe_id="spiffe://other.test/endpoint"),
)
WEB_FLAGS = (
    "-trustDomain", "web.test", "-bundleEndpointURL", "https://web.test/b", "-bundleEndpointProfile", "https_web",
)  # fmt: skip
BY_SVID_FLAGS = (
    "-trustDomain", "other.test", "-bundleEndpointURL", "https://other.test/b",
    "-bundleEndpointProfile", "https_spiffe", "-endpointSpiffeID", "spiffe://other.test/endpoint",
)  # fmt: skip
WEB_TEXT = """\
Trust domain              : web.test
Bundle endpoint URL       : https://web.test/b
Bundle endpoint profile   : https_web
"""
BY_SVID_TEXT = """\
Trust domain              : other.test
Bundle endpoint URL       : https://other.test/b
Bundle endpoint profile   : https_spiffe
Endpoint SPIFFE ID        : spiffe://other.test/endpoint
"""
REFUSED = status_pb2.Status(code=6, message='it "exists"')
VERBS = pytest.mark.parametrize("verb", ["create", "update"])


def with_bundle(relationship: types.FederationRelationship, bundle: bundle_pb2.Bundle) -> types.FederationRelationship:
    made = types.FederationRelationship()
    made.CopyFrom(relationship)
    made.trust_domain_bundle.CopyFrom(bundle)
    return made


def answers(canned: Canned, *results: types.FederationRelationship | status_pb2.Status) -> None:
    """The outcomes of a creation or an update."""
    for method, response in (
        ("BatchCreateFederationRelationship", api.BatchCreateFederationRelationshipResponse()),
        ("BatchUpdateFederationRelationship", api.BatchUpdateFederationRelationshipResponse()),
    ):
        for result in results:
            if isinstance(result, status_pb2.Status):
                response.results.add(status=result)
            else:
                response.results.add(federation_relationship=result, status=status_pb2.Status(message="OK"))
        canned.answers[method] = response


def asked(canned: Canned) -> Sequence[types.FederationRelationship]:
    (request,) = canned.requests
    assert isinstance(
        request, api.BatchCreateFederationRelationshipRequest | api.BatchUpdateFederationRelationshipRequest
    )
    return list(request.federation_relationships)


@VERBS
async def test_a_relationship_by_flags(spire_server: Run, canned: Canned, verb: str, tmp_path: Path) -> None:
    answers(canned, BY_SVID)
    file = tmp_path / "bundle"
    file.write_text(DOCUMENT.to_jwks())
    with_file = ("-trustDomainBundlePath", str(file), "-trustDomainBundleFormat", "spiffe")
    result = await spire_server(f"federation {verb}", *BY_SVID_FLAGS, *with_file)
    assert (result.out, result.err, result.status) == (f"\n{BY_SVID_TEXT}", "", 0)
    assert asked(canned) == [with_bundle(BY_SVID, DOCUMENT.to_proto())]


async def test_a_relationship_without_a_bundle(spire_server: Run, canned: Canned) -> None:
    answers(canned, WEB)
    result = await spire_server("federation create", *WEB_FLAGS, "-output", "json")
    assert result.out == (
        '{"results":[{"federation_relationship":{"bundle_endpoint_url":"https://web.test/b","https_web":{},'
        '"trust_domain":"web.test"},"status":{"code":0,"message":"OK"}}]}\n'
    )
    assert asked(canned) == [WEB]


@VERBS
async def test_what_failed_is_shown_as_it_was_asked_for(
    spire_server: Run, canned: Canned, verb: str, tmp_path: Path
) -> None:
    answers(canned, REFUSED, WEB)
    result = await spire_server(f"federation {verb}", "-data", written(tmp_path, item(BY_SVID_ITEM), item(WEB_ITEM)))
    assert result.out == f"\n{WEB_TEXT}\n"
    assert result.err == (
        f"Failed to {verb} the following federation relationship "
        f'(code: AlreadyExists, msg: "it \\"exists\\""):\n{BY_SVID_TEXT}'
        f"Error: failed to {verb} one or more federation relationships\n"
    )
    assert result.status == 1
    result = await spire_server(f"federation {verb}", *WEB_FLAGS, "-output", "json")
    assert [each["status"]["code"] for each in json.loads(result.out)["results"]] == [6, 0]
    assert result.status == 0


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ((), "trust domain is required"),
        (("-trustDomain", "a.test"), "bundle endpoint URL is required"),
        ((*WEB_FLAGS[:-1], "x"), 'unknown bundle endpoint profile type: "x"; use https_web or https_spiffe'),
        (BY_SVID_FLAGS[:-2], "endpoint SPIFFE ID is required if 'https_spiffe' endpoint profile is set"),
        ((*BY_SVID_FLAGS[:-1], "x"), "cannot parse bundle endpoint SPIFFE ID: scheme is missing or invalid"),
        (
            (*WEB_FLAGS, "-trustDomainBundlePath", "/absent"),
            "cannot read bundle file: open /absent: no such file or directory",
        ),
        (
            (*WEB_FLAGS, "-trustDomainBundlePath", __file__),
            "cannot parse bundle file: unable to parse bundle data: no PEM blocks",
        ),
        (
            (*WEB_FLAGS, "-trustDomainBundlePath", __file__, "-trustDomainBundleFormat", "der"),
            'cannot parse bundle file: invalid format: "der"',
        ),
        (
            ("-data", "x", "-trustDomain", "a.test"),
            "cannot use other flags to specify relationship fields when 'data' flag is set",
        ),
        (
            ("-data", "x", "-trustDomainBundleFormat", "spiffe"),
            "cannot use other flags to specify relationship fields when 'data' flag is set",
        ),
        (("-data", "/absent"), "open /absent: no such file or directory"),
    ],
)
async def test_flags_that_do_not_make_a_relationship(
    spire_server: Run, canned: Canned, flags: tuple[str, ...], error: str
) -> None:
    for verb in ("create", "update"):
        result = await spire_server(f"federation {verb}", *flags)
        assert (result.out, result.err, result.status) == ("", f"Error: {error}\n", 1)
    assert canned.requests == []


WEB_ITEM = {
    "trustDomain": "web.test",
    "bundleEndpointURL": "https://web.test/b",
    "bundleEndpointProfile": "https_web",
}
BY_SVID_ITEM = {
    "trustDomain": "other.test",
    "bundleEndpointURL": "https://other.test/b",
    "bundleEndpointProfile": "https_spiffe",
    "endpointSPIFFEID": "spiffe://other.test/endpoint",
}


def item(base: dict[str, str], **more: Any) -> dict[str, Any]:
    return {**base, **more}


def written(folder: Path, *items: object) -> str:
    file = folder / "data.json"
    file.write_text(json.dumps({"federationRelationships": items}))
    return str(file)


async def test_relationships_from_a_file(spire_server: Run, canned: Canned, tmp_path: Path) -> None:
    answers(canned, BY_SVID, WEB)
    pem = bundles.to_pem([CERTIFICATE])
    path = written(
        tmp_path,
        item(BY_SVID_ITEM, trustDomainBundle=json.loads(DOCUMENT.to_jwks()), trustDomainBundleFormat="spiffe"),
        item(WEB_ITEM, trustDomainBundle=pem, trustDomainBundleFormat="pem"),
    )
    result = await spire_server("federation create", "-data", path)
    assert (result.out, result.err, result.status) == (f"\n{BY_SVID_TEXT}\n{WEB_TEXT}", "", 0)
    authorities = [bundle_pb2.X509Certificate(asn1=CERTIFICATE)]
    assert asked(canned) == [
        with_bundle(BY_SVID, DOCUMENT.to_proto()),
        with_bundle(WEB, bundle_pb2.Bundle(trust_domain="web.test", x509_authorities=authorities)),
    ]


async def test_names_in_a_file_have_any_case(
    spire_server: Run, canned: Canned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in Go, and SPIRE's own examples write endpointSpiffeID."""
    answers(canned, BY_SVID)
    given = {name.swapcase(): value for name, value in BY_SVID_ITEM.items()} | {"comment": "x"}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps({"FederationRelationships": [given]})))
    result = await spire_server("federation update", "-data", "-")
    assert result.err == "Warning: -: comment is not known and was ignored\n"
    assert asked(canned) == [BY_SVID]


@pytest.mark.parametrize(
    ("items", "error"),
    [
        (["x"], "failed to parse JSON: "),
        ([None], "failed to parse JSON: "),
        ([{"trustDomain": 1}], "failed to parse JSON: "),
        ([item(WEB_ITEM, trustDomain="\ud800")], "failed to parse JSON: "),
        ([WEB_ITEM, {}], "could not parse item 1: trust domain is required"),
        (
            [item(WEB_ITEM, trustDomainBundle="x")],
            'could not parse item 0: cannot parse bundle raw message: bundle format "" is unsupported; ',
        ),
        (
            [item(WEB_ITEM, trustDomainBundle={}, trustDomainBundleFormat="pem")],
            "could not parse item 0: cannot parse bundle raw message: in the form pem it is a text",
        ),
        (
            [item(WEB_ITEM, trustDomainBundle="x", trustDomainBundleFormat="pem")],
            "could not parse item 0: cannot parse bundle raw message: unable to parse bundle data: no PEM blocks",
        ),
        (
            [item(WEB_ITEM, trustDomainBundle="x", trustDomainBundleFormat="spiffe")],
            "could not parse item 0: cannot parse bundle raw message: unable to parse to spiffe bundle: ",
        ),
    ],
)
async def test_files_that_are_refused(
    spire_server: Run, canned: Canned, tmp_path: Path, items: Sequence[object], error: str
) -> None:
    result = await spire_server("federation create", "-data", written(tmp_path, *items))
    assert result.err.startswith(f"Error: {error}")
    assert (result.out, result.status, result.err.count("\n"), canned.requests) == ("", 1, 1, [])


@pytest.mark.parametrize("content", ["", "{", "[]", '"x"', "[" * 100_000, '{"federationRelationships": 1}'])
async def test_files_that_are_no_such_document(spire_server: Run, canned: Canned, tmp_path: Path, content: str) -> None:
    file = tmp_path / "data.json"
    file.write_text(content)
    result = await spire_server("federation create", "-data", str(file))
    assert result.err.startswith(f"Error: failed to parse JSON: {file}: ")
    assert (result.out, result.status, result.err.count("\n"), canned.requests) == ("", 1, 1, [])


_NAMES = st.sampled_from([*BY_SVID_ITEM, "trustDomainBundle", "trustDomainBundleFormat", "x"])
_LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
_TEXTS = st.sampled_from(
    ["other.test", "BAD", "https://a", "https_web", "https_spiffe", "spiffe://a/b", "pem", "spiffe", "", "\ud800"]
)
_VALUES = _TEXTS | st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_NAMES | _TEXTS, inner, max_size=3)
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(_NAMES, _VALUES, max_size=7) | _VALUES, max_size=3))
def test_whatever_a_file_holds_is_read_or_refused(tmp_path: Path, items: list[object]) -> None:
    path = written(tmp_path, *items)
    with suppress(InvalidArgument):
        assert len(federation_file.read(path)) == len(items)


async def test_list(spire_server: Run, canned: Canned) -> None:
    def page(request: Message) -> Message:
        assert isinstance(request, api.ListFederationRelationshipsRequest)
        if request.page_token:
            return api.ListFederationRelationshipsResponse(federation_relationships=[BY_SVID])
        return api.ListFederationRelationshipsResponse(federation_relationships=[WEB], next_page_token="more")

    canned.answers["ListFederationRelationships"] = page
    result = await spire_server("federation list")
    assert result.out == f"Found 2 federation relationships\n\n{WEB_TEXT}\n{BY_SVID_TEXT}"
    found = json.loads((await spire_server("federation list", "-output", "json")).out)
    assert [each["trust_domain"] for each in found["federation_relationships"]] == ["web.test", "other.test"]
    assert found["next_page_token"] == ""
    canned.answers["ListFederationRelationships"] = api.ListFederationRelationshipsResponse()
    assert (await spire_server("federation list")).out == "Found 0 federation relationships\n"


async def test_show(spire_server: Run, canned: Canned) -> None:
    canned.answers["GetFederationRelationship"] = BY_SVID
    result = await spire_server("federation show", "-trustDomain", "other.test")
    assert result.out == f"Found a federation relationship with trust domain other.test:\n\n{BY_SVID_TEXT}"
    assert canned.requests == [api.GetFederationRelationshipRequest(trust_domain="other.test")]
    result = await spire_server("federation show", "-trustDomain", "other.test", "-output", "json")
    assert result.out == (
        '{"bundle_endpoint_url":"https://other.test/b",'
        '"https_spiffe":{"endpoint_spiffe_id":"spiffe://other.test/endpoint"},"trust_domain":"other.test"}\n'
    )
    assert (await spire_server("federation show")).err == "Error: -trustDomain is required\n"


async def test_delete(spire_server: Run, canned: Canned) -> None:
    response = api.BatchDeleteFederationRelationshipResponse()
    response.results.add(trust_domain="other.test", status=status_pb2.Status(message="OK"))
    canned.answers["BatchDeleteFederationRelationship"] = response
    result = await spire_server("federation delete", "-id", "spiffe://other.test")
    assert (result.out, result.err, result.status) == ("federation relationship deleted.\n", "", 0)
    assert canned.requests == [api.BatchDeleteFederationRelationshipRequest(trust_domains=["spiffe://other.test"])]
    response.results[0].status.CopyFrom(status_pb2.Status(code=5, message="because"))
    result = await spire_server("federation delete", "-id", "other.test")
    assert result.err == 'Error: failed to delete federation relationship "other.test": because\n'
    assert (result.out, result.status) == ("", 1)
    assert (await spire_server("federation delete")).err == "Error: -id is required\n"


async def test_refresh(spire_server: Run, canned: Canned) -> None:
    canned.answers["RefreshBundle"] = empty_pb2.Empty()
    result = await spire_server("federation refresh", "-id", "other.test")
    assert (result.out, result.err, result.status) == ("Bundle refreshed\n", "", 0)
    assert canned.requests == [api.RefreshBundleRequest(trust_domain="other.test")]
    result = await spire_server("federation refresh", "-id", "other.test", "-output", "json")
    assert result.out == '{"code":0,"message":"OK"}\n'
    canned.answers["RefreshBundle"] = RpcError(Code.NOT_FOUND, "x")
    result = await spire_server("federation refresh", "-id", "other.test")
    assert result.err == 'Error: there is no federation relationship with trust domain "other.test"\n'
    assert (await spire_server("federation refresh")).err == "Error: -id is required\n"


@pytest.mark.parametrize(
    ("command", "flags", "method", "reason"),
    [
        ("create", WEB_FLAGS, "BatchCreateFederationRelationship", "request failed"),
        ("update", WEB_FLAGS, "BatchUpdateFederationRelationship", "request failed"),
        ("list", (), "ListFederationRelationships", "error listing federation relationship"),
        ("show", ("-trustDomain", "a"), "GetFederationRelationship", "error showing federation relationship"),
        ("delete", ("-id", "a"), "BatchDeleteFederationRelationship", "failed to delete federation relationship"),
        ("refresh", ("-id", "a"), "RefreshBundle", "failed to refresh bundle"),
    ],
)
async def test_a_server_that_refuses_the_call(
    spire_server: Run, canned: Canned, command: str, flags: tuple[str, ...], method: str, reason: str
) -> None:
    canned.answers[method] = RpcError(Code.PERMISSION_DENIED, "no")
    result = await spire_server(f"federation {command}", *flags)
    assert result.err == f"Error: {reason}: rpc error: code = PermissionDenied desc = no\n"
    assert (result.out, result.status) == ("", 1)
