"""WIT-SVIDs through a running server: they verify with the bundle, and nothing is there without the flag."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from google.protobuf.message import Message
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from generated.spire.api.server.bundle.v1 import bundle_pb2
from generated.spire.api.server.localauthority.v1 import localauthority_pb2
from generated.spire.api.server.svid.v1 import svid_pb2 as api
from generated.spire.api.types import bundle_pb2 as types
from identity import der
from identity.bundles import Bundle
from tests.simulators.house import BUNDLE, SVID, House, new_entry, refused, running, spiffe_id
from transport.status import Code

LOCAL = "/spire.api.server.localauthority.v1.LocalAuthority/"
ON = 'experimental { feature_flags = ["wit-svid"]  wit_issuer = "https://issuer.test" }'
P256 = ec.generate_private_key(ec.SECP256R1()).public_key()
P384 = ec.generate_private_key(ec.SECP384R1()).public_key()
P521 = ec.generate_private_key(ec.SECP521R1()).public_key()
RSA = rsa.generate_private_key(65537, 2048).public_key()
WEAK = rsa.RSAPublicNumbers(65537, 2**1023 + 1).public_key()
EDWARDS = ed25519.Ed25519PrivateKey.generate().public_key()
TOO_WEAK = "unsupported public key: use ECDSA P-256, P-384 or P-521, or RSA of 2048 to 8192 bits"
UNBOUND = "invalid signing algorithm or key type: unsupported signing algorithm for "


def spki(key: der.PublicKey | ed25519.Ed25519PublicKey) -> bytes:
    return der.subject_public_key_info(key)


def mint(key: der.PublicKey | ed25519.Ed25519PublicKey, algorithm: str, path: str = "/w") -> api.MintWITSVIDRequest:
    return api.MintWITSVIDRequest(id=spiffe_id(path), public_key=spki(key), signing_algorithm=algorithm)


async def verified(house: House, token: str) -> dict[str, Any]:
    """The claims of a token, after it was verified as a stranger would, by the bundle document."""
    bundle = Bundle.from_proto(await house.bundle())
    document = Bundle.from_jwks(bundle.trust_domain, bundle.to_jwks())
    header = jwt.get_unverified_header(token)
    assert header["typ"] == "wit+jwt"
    [key] = [each.public_key for each in document.wit_authorities if each.key_id == header["kid"]]
    claims: dict[str, Any] = jwt.decode(token, der.public_key(key), algorithms=[header["alg"]])
    return claims


def bound(claims: dict[str, Any]) -> bytes:
    """The DER SubjectPublicKeyInfo in `cnf`."""
    jwk = claims["cnf"]["jwk"]
    read = RSAAlgorithm.from_jwk if jwk["kty"] == "RSA" else ECAlgorithm.from_jwk
    key = read(jwk)
    assert isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey)
    return spki(key)


async def test_minted_ones_verify_and_are_bound_to_their_key(tmp_path: Path) -> None:
    async with running(tmp_path, settings=ON) as house:
        for key, algorithm in ((P256, "ES256"), (P384, "ES384"), (P521, "ES512"), (RSA, "RS512"), (RSA, "PS256")):
            svid = (await house.local.unary(SVID + "MintWITSVID", mint(key, algorithm), api.MintWITSVIDResponse)).svid
            claims = await verified(house, svid.token)
            assert set(claims) == {"sub", "iat", "exp", "cnf", "iss"}
            assert (claims["sub"], claims["iss"]) == ("spiffe://example.org/w", "https://issuer.test")
            assert (claims["iat"], claims["exp"]) == (svid.issued_at, svid.expires_at)
            assert svid.expires_at - svid.issued_at == 3600
            assert claims["cnf"]["jwk"]["alg"] == algorithm
            assert bound(claims) == spki(key)
        for request, message in (
            (mint(P256, "ES384"), f"{UNBOUND}ec-p256 key: ES384"),
            (mint(P384, "ES256"), f"{UNBOUND}ec-p384 key: ES256"),
            (mint(RSA, "ES256"), f"{UNBOUND}RSA key: ES256"),
            (mint(P256, "none"), f"{UNBOUND}ec-p256 key: none"),
            (mint(P256, ""), f"{UNBOUND}ec-p256 key: "),
            (mint(EDWARDS, "EdDSA"), "invalid public key: unsupported public key type: use RSA or ECDSA"),
            (mint(WEAK, "RS256"), f"invalid public key: {TOO_WEAK}"),
            (api.MintWITSVIDRequest(), "invalid SPIFFE ID: request must specify SPIFFE ID"),
        ):
            error = await refused(house.local, SVID + "MintWITSVID", request)
            assert (error.code, error.message) == (Code.INVALID_ARGUMENT, message)


async def test_a_batch_answers_for_each_item(tmp_path: Path) -> None:
    async with running(tmp_path, settings=ON) as house:
        agent = await house.attest()
        wanted = new_entry("/web", agent.id)
        wanted.x509_svid_ttl = 60
        [web, alien] = await house.create(wanted, new_entry("/alien", spiffe_id("/elsewhere")))
        params = [
            api.NewWITSVIDParams(entry_id=web.id, public_key=spki(P256), signing_algorithm="ES256"),
            api.NewWITSVIDParams(entry_id=alien.id, public_key=spki(P256), signing_algorithm="ES256"),
            api.NewWITSVIDParams(public_key=spki(P256), signing_algorithm="ES256"),
            api.NewWITSVIDParams(entry_id=web.id, signing_algorithm="ES256"),
            api.NewWITSVIDParams(entry_id=web.id, public_key=b"0\x03abc", signing_algorithm="ES256"),
            api.NewWITSVIDParams(entry_id=web.id, public_key=spki(P256), signing_algorithm="RS256"),
            api.NewWITSVIDParams(entry_id=web.id, public_key=spki(RSA), signing_algorithm="RS256"),
        ]
        request = api.BatchNewWITSVIDRequest(params=params)
        results = (await agent.channel.unary(SVID + "BatchNewWITSVID", request, api.BatchNewWITSVIDResponse)).results
        assert [each.status.code for each in results] == [0, 5, 3, 3, 3, 3, 0]
        assert [each.status.message for each in results[:4]] == [
            "OK",
            "entry not found or not authorized",
            "missing entry ID",
            "missing public key",
        ]
        assert results[4].status.message.startswith("malformed public key: ")
        assert results[5].status.message == f"{UNBOUND}ec-p256 key: RS256"
        for result, key in ((results[0], P256), (results[-1], RSA)):
            claims = await verified(house, result.svid.token)
            assert (claims["sub"], bound(claims)) == ("spiffe://example.org/web", spki(key))
            assert result.svid.expires_at - result.svid.issued_at == 60
        error = await refused(agent.channel, SVID + "BatchNewWITSVID", api.BatchNewWITSVIDRequest())
        assert (error.code, error.message) == (Code.INVALID_ARGUMENT, "missing parameters")


async def authorities(house: House) -> localauthority_pb2.GetWITAuthorityStateResponse:
    request = localauthority_pb2.GetWITAuthorityStateRequest()
    return await house.local.unary(
        LOCAL + "GetWITAuthorityState", request, localauthority_pb2.GetWITAuthorityStateResponse
    )


async def change(house: House, verb: str, authority_id: str = "") -> None:
    named = {"authority_id": authority_id} if authority_id else {}
    request: Message = getattr(localauthority_pb2, f"{verb}WITAuthorityRequest")(**named)
    response = getattr(localauthority_pb2, f"{verb}WITAuthorityResponse")
    await house.local.unary(f"{LOCAL}{verb}WITAuthority", request, response)


async def marks(house: House) -> dict[str, bool]:
    return {each.key_id: each.tainted for each in (await house.bundle()).wit_authorities}


async def test_authorities_are_rotated_tainted_and_revoked(tmp_path: Path) -> None:
    async with running(tmp_path, settings=ON) as house:
        first = (await authorities(house)).active.authority_id
        assert await marks(house) == {first: False}
        await change(house, "Prepare")
        second = (await authorities(house)).prepared.authority_id
        assert await marks(house) == {first: False, second: False}
        await change(house, "Activate", second)
        after = await authorities(house)
        assert (after.active.authority_id, after.old.authority_id) == (second, first)
        svid = (await house.local.unary(SVID + "MintWITSVID", mint(P256, "ES256"), api.MintWITSVIDResponse)).svid
        assert jwt.get_unverified_header(svid.token)["kid"] == second
        request = localauthority_pb2.TaintWITAuthorityRequest(authority_id=second)
        error = await refused(house.local, LOCAL + "TaintWITAuthority", request)
        assert error.message == "unable to taint current local authority"
        await change(house, "Taint", first)
        assert await marks(house) == {first: True, second: False}
        await change(house, "Revoke", first)
        assert await marks(house) == {second: False}


async def test_without_the_flag(house: House) -> None:
    agent = await house.attest()
    assert not (await house.bundle()).wit_authorities
    disabled = (Code.UNIMPLEMENTED, "WIT functionality is disabled")
    error = await refused(house.local, SVID + "MintWITSVID", mint(P256, "ES256"))
    assert (error.code, error.message) == disabled
    batch = api.BatchNewWITSVIDRequest(params=[api.NewWITSVIDParams(entry_id="x")])
    error = await refused(agent.channel, SVID + "BatchNewWITSVID", batch)
    assert (error.code, error.message) == disabled


async def test_given_bundles_are_checked(tmp_path: Path) -> None:
    async with running(tmp_path, settings=ON) as house:
        before = await marks(house)
        good = Bundle.from_proto(await house.bundle()).to_proto().wit_authorities[0]
        good.key_id = "given"
        request = bundle_pb2.AppendBundleRequest(wit_authorities=[good])
        await house.local.unary(BUNDLE + "AppendBundle", request, types.Bundle)
        assert await marks(house) == {**before, "given": False}
        bad = bundle_pb2.AppendBundleRequest(wit_authorities=[types.WITKey(key_id="bad", public_key=b"no")])
        error = await refused(house.local, BUNDLE + "AppendBundle", bad)
        assert error.code is Code.INVALID_ARGUMENT
        assert error.message.startswith("failed to convert WIT authority: unable to parse public key")
