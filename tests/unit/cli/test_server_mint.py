"""`spire-server x509 mint` and `jwt mint`: what is asked of the server, and the whole output."""

from __future__ import annotations

import base64
import json
import stat
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_der_private_key, load_pem_private_key
from google.protobuf.message import Message

from generated.spire.api.server.svid.v1 import svid_pb2
from generated.spire.api.types import bundle_pb2, jwtsvid_pb2, spiffeid_pb2, x509svid_pb2
from identity.bundles import to_pem
from tests.simulators import pki
from tests.simulators.canned import Canned, Run
from transport.status import Code, RpcError

ROOT = pki.Authority.root()
LEAF = ROOT.sign()
ID = ("-spiffeID", "spiffe://example.org/m")


@pytest.fixture
def minting(canned: Canned) -> Canned:
    canned.answers["GetBundle"] = bundle_pb2.Bundle(x509_authorities=[bundle_pb2.X509Certificate(asn1=ROOT.der)])
    svid = x509svid_pb2.X509SVID(cert_chain=[LEAF, ROOT.der], expires_at=int(time.time()) + 3600)
    canned.answers["MintX509SVID"] = svid_pb2.MintX509SVIDResponse(svid=svid)
    return canned


def requested(request: Message) -> x509.CertificateSigningRequest:
    assert isinstance(request, svid_pb2.MintX509SVIDRequest)
    return x509.load_der_x509_csr(request.csr)


async def test_x509(spire_server: Run, minting: Canned) -> None:
    result = await spire_server("x509 mint", *ID, "-dns", "a.test", "-dns", "b.test", "-ttl", "1m500ms")
    head, rest = result.out.split("Private key:\n")
    key, roots = rest.split("\nRoot CAs:\n")
    assert head == f"X509-SVID:\n{to_pem([LEAF, ROOT.der])}\n"
    assert roots == f"{to_pem([ROOT.der])}\n"
    assert (result.err, result.status) == ("", 0)
    csr = requested(minting.requests[0])
    names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://example.org/m"]
    assert names.get_values_for_type(x509.DNSName) == ["a.test", "b.test"]
    assert csr.is_signature_valid
    assert csr.public_key() == load_pem_private_key(key.encode(), None).public_key()
    assert isinstance(minting.requests[0], svid_pb2.MintX509SVIDRequest)
    assert minting.requests[0].ttl == 61


async def test_x509_as_json(spire_server: Run, minting: Canned) -> None:
    result = await spire_server("x509 mint", *ID, "-output", "json")
    document = json.loads(result.out)
    assert list(document) == ["x509_svid", "private_key", "root_cas"]
    assert document["x509_svid"] == [base64.b64encode(der).decode() for der in (LEAF, ROOT.der)]
    assert document["root_cas"] == [base64.b64encode(ROOT.der).decode()]
    key = load_der_private_key(base64.b64decode(document["private_key"]), None)
    assert key.public_key() == requested(minting.requests[0]).public_key()


@pytest.mark.usefixtures("minting")
async def test_x509_to_files(spire_server: Run, tmp_path: Path) -> None:
    result = await spire_server("x509 mint", *ID, "-write", str(tmp_path))
    assert result.out == (
        f"X509-SVID written to {tmp_path}/svid.pem\n"
        f"Private key written to {tmp_path}/key.pem\n"
        f"Root CAs written to {tmp_path}/bundle.pem\n"
    )
    assert (tmp_path / "svid.pem").read_text() == to_pem([LEAF, ROOT.der])
    assert (tmp_path / "bundle.pem").read_text() == to_pem([ROOT.der])
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("svid.pem", "key.pem", "bundle.pem")}
    assert modes == {"svid.pem": 0o644, "key.pem": 0o600, "bundle.pem": 0o644}


async def test_x509_tells_of_a_shorter_life(spire_server: Run, minting: Canned) -> None:
    svid = x509svid_pb2.X509SVID(cert_chain=[LEAF], expires_at=1700000000)
    minting.answers["MintX509SVID"] = svid_pb2.MintX509SVIDResponse(svid=svid)
    result = await spire_server("x509 mint", *ID, "-ttl", "1h")
    expected = 'X509-SVID lifetime was capped shorter than specified ttl; expires "2023-11-14T22:13:20Z"\n'
    assert (result.err, result.status) == (expected, 0)


async def test_x509_fails_in_one_line(spire_server: Run, minting: Canned, tmp_path: Path) -> None:
    async def reason(*args: str) -> str:
        result = await spire_server("x509 mint", *args)
        assert (result.out, result.status) == ("", 1)
        return result.err

    assert await reason() == "Error: spiffeID must be specified\n"
    assert await reason("-spiffeID", "x") == "Error: scheme is missing or invalid\n"
    expected = 'Error: unable to generate CSR: x509: "\u00e9.org" cannot be encoded as an IA5String\n'
    assert await reason(*ID, "-dns", "\u00e9.org") == expected
    gone = tmp_path / "gone"
    expected = f"Error: unable to write SVID: open {gone}/svid.pem: no such file or directory\n"
    assert await reason(*ID, "-write", str(gone)) == expected
    minting.answers["GetBundle"] = bundle_pb2.Bundle()
    assert await reason(*ID) == "Error: server response missing X509 Authorities\n"
    minting.answers["GetBundle"] = RpcError(Code.NOT_FOUND, "none")
    assert await reason(*ID) == "Error: unable to get bundle: rpc error: code = NotFound desc = none\n"
    minting.answers["MintX509SVID"] = svid_pb2.MintX509SVIDResponse()
    assert await reason(*ID) == "Error: server response missing SVID chain\n"
    minting.answers["MintX509SVID"] = RpcError(Code.INVALID_ARGUMENT, "no")
    assert await reason(*ID) == "Error: unable to mint SVID: rpc error: code = InvalidArgument desc = no\n"


def token(expires_at: object) -> str:
    parts = ({"alg": "ES256"}, {"sub": "spiffe://example.org/m", "exp": expires_at})
    head, claims = (base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts)
    return f"{head}.{claims}.c2ln"


def minted(text: str) -> svid_pb2.MintJWTSVIDResponse:
    return svid_pb2.MintJWTSVIDResponse(svid=jwtsvid_pb2.JWTSVID(token=text, expires_at=1900000000))


async def test_jwt(spire_server: Run, canned: Canned) -> None:
    text = token(int(datetime.now(UTC).timestamp()) + 3600)
    canned.answers["MintJWTSVID"] = minted(text)
    result = await spire_server("jwt mint", *ID, "-audience", "a,b", "-audience", "c", "-ttl", "30m")
    assert (result.out, result.err, result.status) == (f"{text}\n", "", 0)
    wanted = spiffeid_pb2.SPIFFEID(trust_domain="example.org", path="/m")
    assert canned.requests == [svid_pb2.MintJWTSVIDRequest(id=wanted, ttl=1800, audience=["a,b", "c"])]


async def test_jwt_as_json(spire_server: Run, canned: Canned) -> None:
    text = token(1900000000)
    canned.answers["MintJWTSVID"] = minted(text)
    result = await spire_server("jwt mint", *ID, "-audience", "a", "-output", "json")
    assert result.out == f'{{"svid":{{"expires_at":"1900000000","hint":"","issued_at":"0","token":"{text}"}}}}\n'


async def test_jwt_to_a_file(spire_server: Run, canned: Canned, tmp_path: Path) -> None:
    text = token(1900000000)
    canned.answers["MintJWTSVID"] = minted(text)
    file = tmp_path / "token"
    result = await spire_server("jwt mint", *ID, "-audience", "a", "-write", str(file))
    assert result.out == f"JWT-SVID written to {file}\n"
    assert file.read_text() == text
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("text", "err"),
    [
        (
            token(1700000000),
            'JWT-SVID lifetime was capped shorter than specified ttl; expires "2023-11-14T22:13:20Z"\n',
        ),
        ("opaque", "Unable to determine JWT-SVID lifetime: the token has no claim exp that can be read\n"),
    ],
)
async def test_jwt_tells_of_its_life(spire_server: Run, canned: Canned, text: str, err: str) -> None:
    canned.answers["MintJWTSVID"] = minted(text)
    result = await spire_server("jwt mint", *ID, "-audience", "a")
    assert (result.out, result.err, result.status) == (f"{text}\n", err, 0)


async def test_jwt_fails_in_one_line(spire_server: Run, canned: Canned) -> None:
    async def reason(*args: str) -> str:
        result = await spire_server("jwt mint", *args)
        assert (result.out, result.status) == ("", 1)
        return result.err

    assert await reason() == "Error: spiffeID must be specified\n"
    assert await reason("-audience", "a") == "Error: spiffeID must be specified\n"
    assert await reason(*ID) == "Error: at least one audience must be specified\n"
    assert await reason("-spiffeID", "x", "-audience", "a") == "Error: scheme is missing or invalid\n"
    canned.answers["MintJWTSVID"] = svid_pb2.MintJWTSVIDResponse()
    assert await reason(*ID, "-audience", "a") == "Error: server response missing token\n"
    canned.answers["MintJWTSVID"] = RpcError(Code.UNAVAILABLE, "no")
    assert await reason(*ID, "-audience", "a") == (
        "Error: unable to mint SVID: rpc error: code = Unavailable desc = no\n"
    )
