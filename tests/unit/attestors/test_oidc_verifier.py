"""OIDC tokens, keys, claims and bindings: good, forged, and at random. No I/O."""

from __future__ import annotations

import base64
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from attestors.oidc import binding, claims, jwks, verifier
from attestors.oidc.binding import Caller
from attestors.oidc.configuration import Configuration, Issuer
from attestors.oidc.jwks import Key, KeySet, UnknownKey
from operations import config, hcl
from operations.errors import ConfigurationError, InvalidArgument, Refused
from tests.simulators.oidc_issuer import SigningKey, jwk, signing_key

NAME = "https://issuer.example.org"
NOW = 1_800_000_000
ISSUER = Issuer(audiences=("spire", "other"))
KEYS: dict[str, SigningKey] = {name: signing_key(name) for name in ("RS256", "ES256", "EdDSA")}
RSA = KEYS["RS256"]
SHORT = rsa.generate_private_key(65537, 1024)  # noqa: S505 - to be refused
SET = KeySet([Key(name, name, key.public_key()) for name, key in KEYS.items()])
GOOD: dict[str, Any] = {"iss": NAME, "sub": "job", "aud": ["spire"], "exp": NOW + 60}


def signed(algorithm: str = "ES256", header: dict[str, Any] | None = None, **changes: Any) -> str:
    said = {name: value for name, value in {**GOOD, **changes}.items() if value is not None}
    return jwt.encode(said, KEYS[algorithm], algorithm, headers={"kid": algorithm, **(header or {})})


def verify(text: str, issuer: Issuer = ISSUER, keys: KeySet = SET, now: float = NOW) -> verifier.Verified:
    return verifier.verify(verifier.read(text), issuer, keys, now)


@pytest.mark.parametrize("algorithm", KEYS)
def test_tokens_that_hold(algorithm: str) -> None:
    verified = verify(signed(algorithm, extra={"a": 1}))
    assert (verified.issuer, verified.subject, verified.audiences) == (NAME, "job", ("spire",))
    assert verified.claims["extra"] == {"a": 1}
    with pytest.raises(Refused, match=r"(ES256|RS256) are taken"):
        verify(
            signed(algorithm), Issuer(audiences=("spire",), algorithms=("RS256" if algorithm == "ES256" else "ES256",))
        )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"aud": "spiffe"}, 'the token is for "spiffe", and for none'),
        ({"aud": None}, "for none of the configured audiences"),
        ({"aud": []}, "for none of the configured audiences"),
        ({"exp": None}, "does not say when it expires"),
        ({"exp": NOW - 60}, "has expired 60 s ago"),
        ({"nbf": NOW + 61}, "not valid for another 61 s"),
        ({"iat": NOW + 61}, "issued in the future"),
        ({"sub": None}, "no subject"),
    ],
)
def test_claims_that_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused, match=words):
        verify(signed(**changes))


def test_clocks_that_are_apart() -> None:
    verify(signed(exp=NOW - 59, nbf=NOW + 60, iat=NOW + 60))


@pytest.mark.parametrize("changes", [{"exp": "soon"}, {"exp": -1}, {"aud": 1}, {"sub": {}}, {"exp": 1e300}])
def test_claims_of_other_types(changes: dict[str, Any]) -> None:
    header, _, signature = signed().split(".")
    body = base64.urlsafe_b64encode(json.dumps({**GOOD, **changes}).encode()).rstrip(b"=").decode()
    with pytest.raises(InvalidArgument):
        verifier.read(f"{header}.{body}.{signature}")


def test_forgeries() -> None:
    header, body, signature = signed().split(".")
    assert isinstance(RSA, rsa.RSAPrivateKey)
    pem = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    none = base64.urlsafe_b64encode(b'{"alg":"none","kid":"ES256"}').rstrip(b"=").decode()
    secret = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"RS256"}').rstrip(b"=").decode()
    import hashlib
    import hmac

    mac = base64.urlsafe_b64encode(hmac.digest(pem, f"{secret}.{body}".encode(), hashlib.sha256)).rstrip(b"=").decode()
    stranger = signing_key("ES256")
    other = jwt.encode(GOOD, stranger, "ES256", headers={"kid": "ES256", "jwk": jwk(stranger)})
    for text, words in (
        (f"{none}.{body}.", "the token is signed with"),
        (f"{secret}.{body}.{mac}", "the token is signed with"),
        (other, "does not verify"),
        (f"{header}.{body}.", "does not verify"),
        (f"{header}.{body}.{signature[:-4]}AAAA", "does not verify"),
        (f"{header}.{signed(sub='root').split('.')[1]}.{signature}", "does not verify"),
        (signed(header={"kid": "RS256"}), "0 keys"),  # the key of another kind
        (signed(header={"kid": "nobody"}), "0 keys"),
    ):
        with pytest.raises(Refused, match=words):
            verify(text)


def test_extensions_that_must_be_understood() -> None:
    with pytest.raises((Refused, InvalidArgument)):
        verify(signed(header={"crit": ["x"], "x": 1}))


def test_tokens_that_name_no_key() -> None:
    token = jwt.encode(GOOD, KEYS["ES256"], "ES256")
    verify(token)
    with pytest.raises(UnknownKey, match="2 keys for a token that is signed with ES256 without a key's id"):
        verify(token, keys=KeySet([*SET.keys, Key("second", "ES256", signing_key("ES256").public_key())]))


@settings(max_examples=300, deadline=None)
@given(position=st.integers(0), character=st.sampled_from("AQgw048_-.=\n"))
def test_a_character_that_was_changed(position: int, character: str) -> None:
    text = TOKEN
    position %= len(text)
    changed = text[:position] + character + text[position + 1 :]
    header, body, signature = text.split(".")
    try:
        verified = verify(changed)
    except (InvalidArgument, Refused):
        return
    # The last character of each part has bits that count for nothing.
    assert verified == verify(text)
    assert changed.split(".")[0][:-1] == header[:-1]
    assert changed.split(".")[1][:-1] == body[:-1]
    assert changed.split(".")[2][:-1] == signature[:-1]


TOKEN = signed("EdDSA")


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=100) | st.tuples(st.binary(max_size=40), st.binary(max_size=40)).map(
    lambda parts: ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (*parts, b"x"))
))  # fmt: skip
def test_any_text_is_no_token(text: str) -> None:
    with pytest.raises(InvalidArgument):
        verifier.read(text)


def test_tokens_that_are_too_long_or_nested() -> None:
    with pytest.raises(InvalidArgument, match="longer than"):
        verifier.read("a" * 70_000)
    deep = base64.urlsafe_b64encode(b'{"alg":"ES256"}').rstrip(b"=").decode()
    body = base64.urlsafe_b64encode(b'{"iss":' + b"[" * 20_000).rstrip(b"=").decode()
    with pytest.raises(InvalidArgument):
        verifier.read(f"{deep}.{body}.AAAA")


def keys_of(*made: Any) -> list[str]:
    return [key.id for key in jwks.parse(json.dumps({"keys": made}).encode()).keys]


def test_keys_of_a_document() -> None:
    good = [jwk(key, kid=name, alg=name) for name, key in KEYS.items()]
    assert keys_of(*good) == list(KEYS)
    assert keys_of({**good[0], "d": "secret"}) == ["RS256"]
    plain = jwk(KEYS["ES256"])
    assert keys_of(plain) == [""]
    ed = ed448.Ed448PrivateKey.generate().public_key().public_bytes_raw()
    strange: tuple[dict[str, Any], ...] = (
        {**plain, "use": "enc"},
        {**plain, "alg": "ES384"},
        {**plain, "key_ops": ["sign"]},
        {**plain, "key_ops": "verify"},
        {**plain, "kid": 7},
        {**plain, "x": "AAAA"},
        {**plain, "x": 5},
        {"kty": "EC", "crv": "P-256"},
        {"kty": "RSA", "n": "AQAB", "e": "AQAB"},
        {"kty": "RSA", "n": "A" * 100_000, "e": "AQAB"},
        jwk(SHORT),
        jwk(ec.generate_private_key(ec.SECP384R1())),
        {"kty": "OKP", "crv": "Ed448", "x": base64.urlsafe_b64encode(ed).rstrip(b"=").decode()},
        {"kty": "oct", "k": "c2VjcmV0"},
        {"kty": ["RSA"]},
        {},
    )
    for each in strange:
        assert keys_of(each) == [], each


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"{}",
        b'{"keys":{}}',
        b'{"keys":[1]}',
        json.dumps({"keys": [{}] * 101}).encode(),
        b" " * (jwks.LARGEST + 1),
        b"[" * 100_000,
    ],
    ids=len,
)
def test_documents_that_are_no_keys(document: bytes) -> None:
    with pytest.raises(InvalidArgument):
        jwks.parse(document)


SAID: claims.Claims = {
    "kubernetes.io": {"pod": {"name": "web-0", "uid": "u-1"}, "namespace": "shop"},
    "a": {"b": 1, "b.c": "dotted"},
    "a.b": {"c": "longest"},
    "groups": ["dev", "ops", 7, True, None, ["deep"], {"x": 1}, ""],
    "yes": False,
    "half": 0.5,
}


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("kubernetes.io.pod.name", ["web-0"]),
        ("kubernetes.io.namespace", ["shop"]),
        ("kubernetes.io.pod", []),
        ("a.b.c", ["longest"]),
        ("a.b", []),
        ("groups", ["dev", "ops", "7", "true"]),
        ("yes", ["false"]),
        ("half", []),
        ("groups.0", []),
        ("nothing.at.all", []),
    ],
)
def test_claims_by_their_path(path: str, found: list[str]) -> None:
    assert claims.values(SAID, path) == found


def test_claims_without_end() -> None:
    for value in (["x"] * 257, "x" * 1025):
        with pytest.raises(Refused, match="at most 256 of 1024 characters"):
            claims.values({"many": value}, "many")


@pytest.mark.parametrize(
    ("said", "issuer", "caller", "words"),
    [
        (SAID, ISSUER, Caller(1, "u-1"), ""),
        (SAID, ISSUER, Caller(1, "u-2"), "for pod u-1, and the process that has it is of pod u-2"),
        (SAID, ISSUER, Caller(1), "for pod u-1, and the process that has it is of no pod"),
        ({"kubernetes.io": {"pod": {"uid": ""}}}, ISSUER, Caller(1), "is of no pod"),
        ({"kubernetes.io": {"pod": {"uid": {}}}}, ISSUER, Caller(1, "u"), "is of pod u"),
        ({}, ISSUER, Caller(1), ""),
        ({"uid": 7}, Issuer(audiences=("a",), uid_claim="uid"), Caller(7), ""),
        ({"uid": "7"}, Issuer(audiences=("a",), uid_claim="uid"), Caller(7), ""),
        ({"uid": 8}, Issuer(audiences=("a",), uid_claim="uid"), Caller(7), "for user 8, and the process that has it"),
        ({}, Issuer(audiences=("a",), uid_claim="uid"), Caller(7), ""),
        ({}, Issuer(audiences=("a",), require_binding=True), Caller(7), "does not say which pod or user it is for"),
        (SAID, Issuer(audiences=("a",), require_binding=True), Caller(7, "u-1"), ""),
    ],
)  # fmt: skip
def test_whose_a_token_is(said: claims.Claims, issuer: Issuer, caller: Caller, words: str) -> None:
    if not words:
        binding.require_bound(said, issuer, caller)
        return
    with pytest.raises(Refused, match=words):
        binding.require_bound(said, issuer, caller)


ONE = 'issuers "https://a" { audiences = ["x"] }\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('token_path = "/t"', "no issuer is configured"),
        (ONE, "token_path or token_env must be configured"),
        (f'{ONE} token_path = "t"', "must be absolute"),
        (f'{ONE} token_env = "A=B"', "is no variable's name"),
        ('issuers "http://a" { audiences = ["x"] }\n token_env = "T"', "must begin with https://"),
        ('issuers "a" { audiences = ["x"] }\n token_env = "T"', "is no URL"),
        ('issuers "https://a" {}\n token_env = "T"', "audiences must be configured"),
        ('issuers "https://a" { audiences = [""] }\n token_env = "T"', "audiences must be configured"),
        ('issuers "https://a" { audiences = ["x"]\n jwks_url = "http://a" }\n token_env = "T"', "must begin with https://"),
        ('issuers "https://a" { audiences = ["x"]\n algorithms = ["HS256"] }\n token_env = "T"', '"HS256"'),
        ('issuers "https://a" { audiences = ["x"]\n algorithms = [] }\n token_env = "T"', "must not be empty"),
        ('issuers "https://a" { audiences = ["x"]\n claims = ["a:b"] }\n token_env = "T"', "without colons"),
        ('issuers "https://a" { audience = ["x"] }\n token_env = "T"', 'did you mean "audiences"'),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_used(text: str, words: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        config.bind(Configuration, hcl.parse(text, "agent.conf"), section='WorkloadAttestor "oidc_attestor"')
    assert words in str(error.value)
    assert str(error.value).startswith("agent.conf:")


def test_several_issuers() -> None:
    text = 'issuers "https://a" { audiences = ["x"] }\n issuers "https://b" { audiences = ["y"] }\n token_path = "/t"'
    bound = config.bind(Configuration, hcl.parse(text, "agent.conf"))
    assert {name: issuer.audiences for name, issuer in bound.issuers.items()} == {
        "https://a": ("x",),
        "https://b": ("y",),
    }
