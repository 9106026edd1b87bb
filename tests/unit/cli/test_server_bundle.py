"""`spire-server bundle list|count|set|delete`: what is asked of the server, and the whole output."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from google.protobuf.message import Message

from generated.spire.api.server.bundle.v1 import bundle_pb2 as api
from generated.spire.api.types import bundle_pb2, status_pb2
from identity import bundles
from identity.bundles import Bundle, JwtAuthority, X509Authority
from identity.spiffeid import TrustDomain
from tests.simulators import pki
from tests.simulators.canned import Canned, Run
from transport.status import Code, RpcError

ONE, TWO = (pki.Authority.root("spiffe://other.test").der for _ in range(2))
DOCUMENT = Bundle(
    TrustDomain("other.test"),
    (X509Authority(ONE), X509Authority(TWO)),
    (JwtAuthority("key", pki.spki(pki.ec_key())),),
    refresh_hint=60,
    sequence_number=4,
)
PEM = bundles.to_pem([ONE])
STARS = "*" * 40
DONE = status_pb2.Status(message="OK")


def was_set(status: status_pb2.Status = DONE) -> api.BatchSetFederatedBundleResponse:
    response = api.BatchSetFederatedBundleResponse()
    response.results.add(status=status, bundle=None if status.code else bundle_pb2.Bundle(trust_domain="other.test"))
    return response


def was_deleted(status: status_pb2.Status = DONE) -> api.BatchDeleteFederatedBundleResponse:
    response = api.BatchDeleteFederatedBundleResponse()
    response.results.add(status=status, trust_domain="other.test")
    return response


def message(name: str, *certificates: bytes) -> bundle_pb2.Bundle:
    authorities = [bundle_pb2.X509Certificate(asn1=each) for each in certificates]
    return bundle_pb2.Bundle(trust_domain=name, x509_authorities=authorities)


@pytest.mark.parametrize(("number", "text"), [(0, "0 bundles"), (1, "1 bundle"), (2, "2 bundles")])
async def test_count(spire_server: Run, canned: Canned, number: int, text: str) -> None:
    canned.answers["CountBundles"] = api.CountBundlesResponse(count=number)
    result = await spire_server("bundle count")
    assert (result.out, result.err, result.status) == (f"{text}\n", "", 0)
    assert (await spire_server("bundle count", "-output", "json")).out == f'{{"count":{number}}}\n'


async def test_list_prints_each_below_its_name(spire_server: Run, canned: Canned) -> None:
    pages = [
        api.ListFederatedBundlesResponse(bundles=[message("a.test", ONE)], next_page_token="more"),
        api.ListFederatedBundlesResponse(bundles=[message("b.test", TWO)]),
    ]

    def page(request: Message) -> Message:
        assert isinstance(request, api.ListFederatedBundlesRequest)
        return pages[1 if request.page_token == "more" else 0]

    canned.answers["ListFederatedBundles"] = page
    result = await spire_server("bundle list")
    assert result.out == (f"{STARS}\n* a.test\n{STARS}\n{PEM}\n{STARS}\n* b.test\n{STARS}\n{bundles.to_pem([TWO])}")
    assert (result.err, result.status) == ("", 0)
    found = json.loads((await spire_server("bundle list", "-output", "json")).out)
    assert [each["trust_domain"] for each in found["bundles"]] == ["a.test", "b.test"]
    assert found["next_page_token"] == ""
    result = await spire_server("bundle list", "-format", "der")
    assert (result.out, result.err, result.status) == ("", 'Error: invalid format: "der"\n', 1)


async def test_list_of_none(spire_server: Run, canned: Canned) -> None:
    canned.answers["ListFederatedBundles"] = api.ListFederatedBundlesResponse()
    assert (await spire_server("bundle list")).out == ""


async def test_list_of_one(spire_server: Run, canned: Canned) -> None:
    canned.answers["GetFederatedBundle"] = DOCUMENT.to_proto()
    result = await spire_server("bundle list", "-id", "spiffe://other.test")
    assert (result.out, result.err, result.status) == (bundles.to_pem([ONE, TWO]), "", 0)
    assert canned.requests == [api.GetFederatedBundleRequest(trust_domain="spiffe://other.test")]
    result = await spire_server("bundle list", "-id", "other.test", "-format", "spiffe")
    assert result.out == DOCUMENT.to_jwks() + "\n"
    canned.answers["GetFederatedBundle"] = RpcError(Code.NOT_FOUND, "bundle not found")
    result = await spire_server("bundle list", "-id", "other.test")
    assert (result.err, result.status) == ("Error: rpc error: code = NotFound desc = bundle not found\n", 1)


async def test_set_from_a_file(spire_server: Run, canned: Canned, tmp_path: Path) -> None:
    canned.answers["BatchSetFederatedBundle"] = was_set()
    pem, document = tmp_path / "bundle.pem", tmp_path / "bundle.json"
    pem.write_text(PEM)
    document.write_text(DOCUMENT.to_jwks())
    result = await spire_server("bundle set", "-id", "spiffe://other.test", "-path", str(pem))
    assert (result.out, result.err, result.status) == ("bundle set.\n", "", 0)
    result = await spire_server("bundle set", "-id", "other.test", "-path", str(document), "-format", "SPIFFE")
    assert result.out == "bundle set.\n"
    assert canned.requests == [
        api.BatchSetFederatedBundleRequest(bundle=[message("spiffe://other.test", ONE)]),
        api.BatchSetFederatedBundleRequest(bundle=[DOCUMENT.to_proto()]),
    ]
    result = await spire_server("bundle set", "-id", "other.test", "-path", str(pem), "-output", "json")
    assert json.loads(result.out)["results"][0]["bundle"]["trust_domain"] == "other.test"


async def test_set_from_standard_input(spire_server: Run, canned: Canned, monkeypatch: pytest.MonkeyPatch) -> None:
    canned.answers["BatchSetFederatedBundle"] = was_set()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(PEM.encode())))
    assert (await spire_server("bundle set", "-id", "other.test")).out == "bundle set.\n"
    assert canned.requests == [api.BatchSetFederatedBundleRequest(bundle=[message("other.test", ONE)])]


@pytest.mark.parametrize(
    ("content", "flags", "error"),
    [
        ("", (), "unable to parse bundle data: no PEM blocks"),
        (PEM[:-30], (), "unable to parse bundle data: no PEM blocks"),
        (PEM + PEM[:-30], (), "unable to parse bundle data: a PEM block has no end; is the file cut short?"),
        (
            PEM.replace("CERTIFICATE", "PUBLIC KEY"),
            (),
            'unable to parse bundle data: expected block type "CERTIFICATE"; got "PUBLIC KEY"',
        ),
        (
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            (),
            "unable to parse bundle data: unable to parse certificate: not a well-formed X.509 certificate in DER",
        ),
        (PEM, ("-format", "der"), 'invalid format: "der"'),
        (PEM, ("-id", ""), "-id is required"),
        ("{}", ("-format", "spiffe", "-id", "BAD"), "trust domain characters are limited"),
        (PEM, ("-format", "spiffe"), "unable to parse to spiffe bundle: unable to parse JWKS: "),
        ('{"keys": [{}]}', ("-format", "spiffe"), "unable to parse to spiffe bundle: missing use for key entry 0"),
        (PEM, ("-path", "/dev/zero"), "unable to load bundle data: /dev/zero is longer than 8388608 bytes"),
        (PEM, ("-path", "/absent"), "unable to load bundle data: open /absent: no such file or directory"),
    ],
)
async def test_set_tells_what_is_wrong_with_a_bundle(
    spire_server: Run, canned: Canned, tmp_path: Path, content: str, flags: tuple[str, ...], error: str
) -> None:
    file = tmp_path / "bundle"
    file.write_text(content)
    result = await spire_server("bundle set", "-id", "other.test", "-path", str(file), *flags)
    assert result.err.startswith(f"Error: {error}")
    assert result.err.count("\n") == 1
    assert (result.out, result.status, canned.requests) == ("", 1, [])


async def test_set_and_delete_tell_why_the_server_refuses(spire_server: Run, canned: Canned, tmp_path: Path) -> None:
    refused = status_pb2.Status(code=3, message="because")
    canned.answers["BatchSetFederatedBundle"] = was_set(refused)
    canned.answers["BatchDeleteFederatedBundle"] = was_deleted(refused)
    file = tmp_path / "bundle"
    file.write_text(PEM)
    result = await spire_server("bundle set", "-id", "other.test", "-path", str(file))
    assert (result.out, result.err, result.status) == ("", "Error: failed to set federated bundle: because\n", 1)
    result = await spire_server("bundle delete", "-id", "other.test")
    assert result.err == 'Error: failed to delete federated bundle "other.test": because\n'
    assert (result.out, result.status) == ("", 1)
    # As in SPIRE, a program finds the status in the answer.
    assert (await spire_server("bundle delete", "-id", "other.test", "-output", "json")).status == 0

    for method in ("BatchSetFederatedBundle", "BatchDeleteFederatedBundle"):
        canned.answers[method] = RpcError(Code.PERMISSION_DENIED, "no")
    result = await spire_server("bundle set", "-id", "other.test", "-path", str(file))
    reason = "rpc error: code = PermissionDenied desc = no"
    assert result.err == f"Error: failed to set federated bundle: {reason}\n"
    result = await spire_server("bundle delete", "-id", "other.test")
    assert result.err == f"Error: failed to delete federated bundle: {reason}\n"


@pytest.mark.parametrize(
    ("flags", "mode"),
    [
        ((), api.BatchDeleteFederatedBundleRequest.RESTRICT),
        (("-mode", ""), api.BatchDeleteFederatedBundleRequest.RESTRICT),
        (("-mode", "restrict"), api.BatchDeleteFederatedBundleRequest.RESTRICT),
        (("-mode", "dissociate"), api.BatchDeleteFederatedBundleRequest.DISSOCIATE),
        (("-mode", "delete"), api.BatchDeleteFederatedBundleRequest.DELETE),
    ],
)
async def test_delete(
    spire_server: Run,
    canned: Canned,
    flags: tuple[str, ...],
    mode: api.BatchDeleteFederatedBundleRequest.Mode.ValueType,
) -> None:
    canned.answers["BatchDeleteFederatedBundle"] = was_deleted()
    result = await spire_server("bundle delete", "-id", "spiffe://other.test", *flags)
    assert (result.out, result.err, result.status) == ("bundle deleted.\n", "", 0)
    request = api.BatchDeleteFederatedBundleRequest(mode=mode, trust_domains=["spiffe://other.test"])
    assert canned.requests == [request]


async def test_delete_needs_to_know_what_and_how(spire_server: Run, canned: Canned) -> None:
    assert (await spire_server("bundle delete")).err == "Error: -id is required\n"
    result = await spire_server("bundle delete", "-id", "other.test", "-mode", "all")
    assert result.err == 'Error: unsupported mode "all": use restrict, delete, dissociate\n'
    assert (result.status, canned.requests) == (1, [])
