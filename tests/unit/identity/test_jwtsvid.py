"""JWT-SVID standard, sections 2 to 5."""

from __future__ import annotations

import base64
import hmac
import json
from datetime import timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from identity import jwtsvid
from identity.bundles import JwtAuthority
from identity.spiffeid import SpiffeId, TrustDomain
from operations.errors import InvalidArgument, Refused
from tests.simulators.pki import NOW, PrivateKey, ec_key, spki

TD = TrustDomain("example.org")
SECONDS = int(NOW.timestamp())
KEY = ec_key()
P384 = ec_key(ec.SECP384R1())
RSA = rsa.generate_private_key(65537, 2048)
AUTHORITIES = {
    TD: [JwtAuthority("ec", spki(KEY)), JwtAuthority("p384", spki(P384)), JwtAuthority("rsa", spki(RSA))],
    TrustDomain("other.org"): [JwtAuthority("other", spki(KEY))],
}
CLAIMS = {
    "sub": "spiffe://example.org/workload",
    "aud": ["a", "b"],
    "exp": SECONDS + 300,
    "iat": SECONDS,
    "more": {"x": [1]},
}


def make(key: PrivateKey = KEY, alg: str = "ES256", header: dict[str, Any] | None = None, **claims: Any) -> str:
    merged = {name: value for name, value in {**CLAIMS, **claims}.items() if value is not None}
    return jwt.encode(merged, key, alg, headers={"kid": "ec"} if header is None else header)


def segment(content: str) -> str:
    return base64.urlsafe_b64encode(content.encode()).rstrip(b"=").decode()


def test_a_good_token() -> None:
    svid = jwtsvid.verify(make(), AUTHORITIES, "b", NOW)
    assert svid.id == SpiffeId(TD, "/workload")
    assert svid.audience == ("a", "b")
    assert (svid.issued_at, svid.expires_at) == (SECONDS, SECONDS + 300)
    assert svid.claims == CLAIMS
    assert jwtsvid.read_unverified(make()) == svid


@pytest.mark.parametrize(
    ("key", "key_id", "alg"),
    [(P384, "p384", "ES384"), (RSA, "rsa", "RS256"), (RSA, "rsa", "RS512"), (RSA, "rsa", "PS256")],
)
def test_algorithms(key: PrivateKey, key_id: str, alg: str) -> None:
    token = make(key, alg, {"kid": key_id})
    assert jwtsvid.verify(token, AUTHORITIES, ["x", "a"], NOW).id.path == "/workload"


def test_audience_as_text_and_missing_iat() -> None:
    svid = jwtsvid.verify(make(aud="a", iat=None), AUTHORITIES, "a", NOW)
    assert (svid.audience, svid.issued_at) == (("a",), 0)


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"exp": SECONDS - 61}, "token has expired"),
        ({"nbf": SECONDS + 61}, "not valid yet"),
        ({"iat": SECONDS + 61}, "issued in the future"),
        ({"aud": ["c"]}, r'expected audience in \["a"\] \(audience=\["c"\]\)'),
        ({"aud": None}, "expected audience"),
        ({"sub": "spiffe://other.org/x"}, 'public key "ec" not found in trust domain "other.org"'),
        ({"sub": "spiffe://third.org/x"}, 'no keys found for trust domain "third.org"'),
    ],
)
def test_refusals(claims: dict[str, Any], reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        jwtsvid.verify(make(**claims), AUTHORITIES, "a", NOW)


def test_leeway_is_a_minute() -> None:
    token = make(exp=SECONDS - 60, nbf=SECONDS + 60, iat=SECONDS + 60)
    jwtsvid.verify(token, AUTHORITIES, "a", NOW)
    with pytest.raises(Refused, match="token has expired"):
        jwtsvid.verify(token, AUTHORITIES, "a", NOW + timedelta(seconds=1))


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"sub": None}, "token missing subject claim"),
        ({"exp": None}, "token missing exp claim"),
        ({"sub": "workload"}, "token has an invalid subject claim: scheme is missing or invalid"),
        ({"exp": "soon"}, "unable to get claims from token"),
        ({"exp": 1e300}, "unable to get claims from token"),
        ({"aud": [1]}, "unable to get claims from token"),
    ],
)
def test_malformed_claims(claims: dict[str, Any], reason: str) -> None:
    merged = {name: value for name, value in {**CLAIMS, **claims}.items() if value is not None}
    token = jwt.PyJWS().encode(json.dumps(merged).encode(), KEY, "ES256", headers={"kid": "ec"})
    with pytest.raises(InvalidArgument, match=reason):
        jwtsvid.verify(token, AUTHORITIES, "a", NOW)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({}, "token header missing key id"),
        ({"kid": ""}, "token header missing key id"),
        ({"kid": "ec", "typ": "at+jwt"}, "token header type not equal to either JWT or JOSE"),
    ],
)
def test_malformed_headers(header: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        jwtsvid.verify(make(header=header), AUTHORITIES, "a", NOW)


def test_unsigned_and_symmetric_tokens_are_refused() -> None:
    payload = segment(json.dumps(CLAIMS))
    header = segment(json.dumps({"alg": "none", "kid": "ec"}))
    unsigned = f"{header}.{payload}."
    # The classic confusion: HMAC with the public key as its secret.
    signed = f"{segment(json.dumps({'alg': 'HS256', 'kid': 'ec'}))}.{payload}"
    mac = hmac.digest(spki(KEY), signed.encode(), "sha256")
    symmetric = f"{signed}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"
    for token in (unsigned, symmetric):
        with pytest.raises(InvalidArgument, match="unexpected signature algorithm"):
            jwtsvid.verify(token, AUTHORITIES, "a", NOW)


def test_the_key_decides_the_algorithm() -> None:
    with pytest.raises(Refused, match="does not verify"):
        jwtsvid.verify(make(P384, "ES384", {"kid": "ec"}), AUTHORITIES, "a", NOW)
    with pytest.raises(Refused, match="does not verify"):
        jwtsvid.verify(make(RSA, "RS256", {"kid": "ec"}), AUTHORITIES, "a", NOW)


def test_another_keys_signature_and_changed_payload_are_refused() -> None:
    with pytest.raises(Refused, match="does not verify"):
        jwtsvid.verify(make(ec_key()), AUTHORITIES, "a", NOW)
    header, _, signature = make().split(".")
    changed = segment(json.dumps({**CLAIMS, "aud": ["c"]}))
    with pytest.raises(Refused, match="does not verify"):
        jwtsvid.verify(f"{header}.{changed}.{signature}", AUTHORITIES, "c", NOW)


def test_unknown_critical_header_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="unable to parse JWT token"):
        jwtsvid.verify(make(header={"kid": "ec", "crit": ["x"], "x": 1}), AUTHORITIES, "a", NOW)


@pytest.mark.parametrize("token", ["", "a", "a.b.c", "..", "ä.b.c", "\ud800", "a." * 100, "a" * 70_000])
def test_garbage(token: str) -> None:
    with pytest.raises(InvalidArgument, match="unable to parse JWT token"):
        jwtsvid.verify(token, AUTHORITIES, "a", NOW)


@pytest.mark.parametrize("content", [b"\xff", b"[" * 20_000, b'{"x":' * 8_000, b'{"sub": "\xff"}'])
def test_hostile_json(content: bytes) -> None:
    hostile = base64.urlsafe_b64encode(content).rstrip(b"=").decode()
    head, claims, signature = make().split(".")
    for token in (f"{hostile}.{claims}.{signature}", f"{head}.{hostile}.{signature}"):
        with pytest.raises(InvalidArgument, match=r"unable to (parse JWT token|get claims from token)"):
            jwtsvid.verify(token, AUTHORITIES, "a", NOW)
        with pytest.raises(InvalidArgument):
            jwtsvid.read_unverified(token)


def test_no_wanted_audience_accepts_nothing() -> None:
    with pytest.raises(Refused, match="expected audience"):
        jwtsvid.verify(make(), AUTHORITIES, [], NOW)


TOKEN = make()


@settings(max_examples=400)
@given(st.integers(0, len(TOKEN) - 1), st.characters(codec="utf-8"))
def test_any_changed_character_is_refused(position: int, character: str) -> None:
    assume(TOKEN[position] != character)
    changed = TOKEN[:position] + character + TOKEN[position + 1 :]
    with pytest.raises((InvalidArgument, Refused)):
        jwtsvid.verify(changed, AUTHORITIES, "a", NOW)


@given(st.text(max_size=60))
def test_any_garbage_is_refused(token: str) -> None:
    with pytest.raises(InvalidArgument):
        jwtsvid.verify(token, AUTHORITIES, "a", NOW)
