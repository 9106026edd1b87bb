"""`spire-server wit mint`: what is asked of the server, the whole output, and the flag that it is behind."""

from __future__ import annotations

import base64
import json
import stat
import time
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from generated.spire.api.server.svid.v1 import svid_pb2
from generated.spire.api.types import spiffeid_pb2, witsvid_pb2
from identity import der
from server.cli.main import COMMANDS, WIT_COMMANDS, behind_flags
from tests.simulators.canned import Canned, Run
from transport.status import Code, RpcError

ID = ("-spiffeID", "spiffe://example.org/m")


def a_token(life: int) -> str:
    claims = base64.urlsafe_b64encode(json.dumps({"exp": int(time.time()) + life}).encode()).rstrip(b"=").decode()
    return f"e30.{claims}.c2ln"


TOKEN = a_token(3600)


@pytest.fixture
def minting(canned: Canned) -> Canned:
    svid = witsvid_pb2.WITSVID(
        token=TOKEN,
        id=spiffeid_pb2.SPIFFEID(trust_domain="example.org", path="/m"),
        expires_at=1900000000,
        issued_at=1899999000,
    )
    canned.answers["MintWITSVID"] = svid_pb2.MintWITSVIDResponse(svid=svid)
    return canned


@pytest.mark.parametrize(
    ("key_type", "algorithm"),
    [("ec-p256", "ES256"), ("ec-p384", "ES384"), ("rsa-2048", "RS256"), ("rsa-2048", "PS512")],
)
async def test_the_key_that_is_printed_is_the_one_that_was_asked_for(
    spire_server: Run, minting: Canned, key_type: str, algorithm: str
) -> None:
    args = (*ID, "-keyType", key_type, "-signingAlgorithm", algorithm, "-ttl", "1m500ms")
    result = await spire_server("wit mint", *args)
    token, jwk, end = result.out.split("\n")
    assert (token, end, result.err, result.status) == (TOKEN, "", "", 0)
    [request] = minting.requests
    assert isinstance(request, svid_pb2.MintWITSVIDRequest)
    assert (request.id.path, request.ttl, request.signing_algorithm) == ("/m", 61, algorithm)
    of = RSAAlgorithm if key_type.startswith("rsa") else ECAlgorithm
    private = of.from_jwk(jwk)
    assert isinstance(private, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey)
    assert der.public_key(request.public_key) == private.public_key()
    signed = jwt.encode({"a": "b"}, private, algorithm=algorithm)
    assert jwt.decode(signed, der.public_key(request.public_key), algorithms=[algorithm]) == {"a": "b"}


@pytest.mark.usefixtures("minting")
async def test_json_and_files(spire_server: Run, tmp_path: Path) -> None:
    document = json.loads((await spire_server("wit mint", *ID, "-output", "json")).out)
    assert list(document) == ["private_key", "svid"]
    assert json.loads(document["private_key"])["kty"] == "EC"
    assert document["svid"] == {
        "expires_at": "1900000000",
        "hint": "",
        "id": {"path": "/m", "trust_domain": "example.org"},
        "issued_at": "1899999000",
        "token": TOKEN,
    }
    result = await spire_server("wit mint", *ID, "-write", str(tmp_path))
    assert result.out == f"WIT-SVID written to {tmp_path}/token\nPrivate key written to {tmp_path}/key\n"
    assert (tmp_path / "token").read_text() == TOKEN
    assert json.loads((tmp_path / "key").read_text())["d"]
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("token", "key")} == {0o600}


async def test_it_tells_of_a_shorter_life(spire_server: Run, minting: Canned) -> None:
    result = await spire_server("wit mint", *ID, "-ttl", "2h")
    assert result.err.startswith('WIT-SVID lifetime was capped shorter than specified ttl; expires "')
    minting.answers["MintWITSVID"] = svid_pb2.MintWITSVIDResponse(svid=witsvid_pb2.WITSVID(token="x"))
    result = await spire_server("wit mint", *ID)
    assert (result.err, result.status) == (
        "Unable to determine WIT-SVID lifetime: the token has no claim exp that can be read\n",
        0,
    )


async def test_it_fails_in_one_line(spire_server: Run, minting: Canned) -> None:
    async def reason(*args: str) -> str:
        result = await spire_server("wit mint", *args)
        assert (result.out, result.status) == ("", 1)
        return result.err

    assert await reason() == "Error: spiffeID must be specified\n"
    assert await reason(*ID, "-signingAlgorithm", "ES123") == "Error: unsupported signing algorithm: ES123\n"
    expected = "Error: unsupported key type 'ec-p256' for signing algorithm 'RS256'\n"
    assert await reason(*ID, "-signingAlgorithm", "RS256") == expected
    expected = "Error: unsupported key type 'rsa-2048' for 'ES256' signing algorithm\n"
    assert await reason(*ID, "-keyType", "rsa-2048") == expected
    assert not minting.requests
    minting.answers["MintWITSVID"] = svid_pb2.MintWITSVIDResponse()
    assert await reason(*ID) == "Error: server response missing token\n"
    minting.answers["MintWITSVID"] = RpcError(Code.UNIMPLEMENTED, "WIT functionality is disabled")
    expected = "Error: unable to mint SVID: rpc error: code = Unimplemented desc = WIT functionality is disabled\n"
    assert await reason(*ID) == expected


def test_the_commands_are_behind_the_flag() -> None:
    assert not {each.name for each in COMMANDS} & {each.name for each in WIT_COMMANDS}
    assert behind_flags("") == behind_flags("wit") == ()
    assert behind_flags("i_am_a_test_flag wit-svid") == WIT_COMMANDS
