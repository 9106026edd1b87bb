"""Tokens that count, and those that somebody would like to count."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from attestors.oidc import tokens
from attestors.oidc.configuration import Issuer
from attestors.oidc.keys import SigningKey, signing_keys
from operations.errors import InvalidArgument, Refused, SpireError
from tests.simulators.issuer import Key, jwk, new_key

NAME = "https://issuer.example"
ISSUER = Issuer(audiences=("spire", "other"), claims=("groups", "kubernetes.io.pod.name", "admin", "roles.name"))
NOW = 1_800_000_000
KEYS = {algorithm: new_key(algorithm) for algorithm in ("RS256", "ES256", "EdDSA")}
KUBERNETES: dict[str, Any] = {"kubernetes.io": {"pod": {"name": "web-1"}}}


def raw(key: Key, key_id: str | None = "k", **more: Any) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(jwk(key, key_id, **more)).encode())


def published(*keys: Key) -> tuple[SigningKey, ...]:
    return signing_keys([raw(key) for key in keys or KEYS.values()])


def claims(**changes: Any) -> dict[str, Any]:
    made = {"iss": NAME, "sub": "job", "aud": "spire", "exp": NOW + 60, "iat": NOW, "nbf": NOW, **changes}
    return {name: value for name, value in made.items() if value is not None}


def token(algorithm: str = "ES256", key: Key | None = None, **changes: Any) -> str:
    return jwt.encode(claims(**changes), key or KEYS[algorithm], algorithm, headers={"kid": "k"})


def verified(text: str, issuer: Issuer = ISSUER, now: float = NOW) -> list[str]:
    return tokens.selector_values(tokens.verify(text, NAME, issuer, published(), now), issuer)


@pytest.mark.parametrize("algorithm", KEYS)
def test_a_token_gives_selectors(algorithm: str) -> None:
    found = verified(token(algorithm, aud=["spire", "billing"], groups=["a", "b", "a"], admin=True, **KUBERNETES))
    assert found == [
        f"iss:{NAME}",
        "sub:job",
        "aud:spire",
        "aud:billing",
        "claim:groups:a",
        "claim:groups:b",
        "claim:kubernetes.io.pod.name:web-1",
        "claim:admin:true",
    ]


def test_values_are_found_in_lists_of_objects() -> None:
    assert verified(token(roles=[{"name": "x"}, {"name": ["y", 3]}, {"no": 1}, "z"]))[3:] == [
        "claim:roles.name:x",
        "claim:roles.name:y",
        "claim:roles.name:3",
    ]


def test_the_longest_name_with_dots_comes_first() -> None:
    both = {"a.b": {"c": "long"}, "a": {"b": {"c": "short"}, "b.c": "middle"}}
    assert list(tokens.texts(both, "a.b.c")) == ["long"]
    assert list(tokens.texts({"a": both["a"]}, "a.b.c")) == ["middle"]
    assert list(tokens.texts(both, "a.b")) == []


def unsigned(header: dict[str, Any], body: dict[str, Any] | None = None, signature: bytes = b"") -> str:
    parts = (json.dumps(header).encode(), json.dumps(claims() if body is None else body).encode(), signature)
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def with_hmac_of_the_public_key() -> str:
    public = KEYS["RS256"].public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    head = unsigned({"alg": "HS256", "kid": "k"}).rpartition(".")[0]
    signature = hmac.new(pem, head.encode(), hashlib.sha256).digest()
    return f"{head}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


STRANGER = new_key("ES256")
BAD: dict[str, tuple[str, str]] = {
    "alg none": (unsigned({"alg": "none", "kid": "k"}), "algorithm is .*none"),
    "no alg": (unsigned({"kid": "k"}), "algorithm is"),
    "HMAC with the public key": (with_hmac_of_the_public_key(), "algorithm is .*HS256"),
    "a stranger's key": (token(key=STRANGER), "by none of the keys"),
    "a key of its own in the header": (
        jwt.encode(claims(), STRANGER, "ES256", headers={"kid": "k", "jwk": jwk(STRANGER, "k")}),
        "by none of the keys",
    ),
    "another kind of key": (unsigned({"alg": "RS256", "kid": "k"}, signature=b"x" * 256), "by none of the keys"),
    "no signature": (token().rpartition(".")[0] + ".", "by none of the keys"),
    "another's issuer": (token(iss="https://other.example"), "is not of issuer"),
    "the issuer with a slash": (token(iss=f"{NAME}/"), "is not of issuer"),
    "a wrong audience": (token(aud="billing"), "none of the audiences"),
    "no audience": (token(aud=None), "no claim .*aud"),
    "an empty audience": (token(aud=[]), "no claim .*aud"),
    "an audience of numbers": (token(aud=[1]), "audiences|understood"),
    "no subject": (token(sub=None), "no claim .*sub"),
    "an empty subject": (token(sub=""), "no subject"),
    "no end": (token(exp=None), "no claim .*exp"),
    "expired": (token(exp=NOW - 60), "has expired"),
    "not yet": (token(nbf=NOW + 61), "not valid yet"),
    "issued later": (token(iat=NOW + 61), "not valid yet"),
    "an end that is no number": (token(exp="soon"), "no date"),
    "an end that is no time": (token(exp=10**30), "no date"),
    "too many values": (token(groups=[str(each) for each in range(300)]), "more than 256"),
    "a value too long": (token(groups="x" * 2000), "more than 1024"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_token_is_refused(case: str) -> None:
    text, reason = BAD[case]
    with pytest.raises(Refused, match=reason):
        verified(text)


@pytest.mark.parametrize("end", [float("inf"), float("nan")], ids=["never", "no number"])
def test_an_end_that_is_no_json_number(end: float) -> None:
    header = {"alg": "ES256", "kid": "k"}
    text = jwt.encode(claims(), KEYS["ES256"], "ES256", headers=header)
    assert verified(text)
    with pytest.raises(SpireError):
        verified(token(exp=end))


def test_an_algorithm_that_the_issuer_is_not_set_to() -> None:
    with pytest.raises(Refused, match="add it to algorithms"):
        verified(token("RS256"), Issuer(audiences=("spire",), algorithms=("ES256",)))


@pytest.mark.parametrize("text", ["", "a", "a.b", "a.b.c", "é.é.é", "a.b.c.d", "e30.e30.", "." * 5, "[]" * 5])
def test_what_is_no_token(text: str) -> None:
    with pytest.raises((InvalidArgument, Refused)):
        tokens.look(text)


def test_a_token_that_is_too_long() -> None:
    with pytest.raises(InvalidArgument, match="longer than 65536"):
        tokens.look("a" * 65537)


@given(st.integers(0, 10_000), st.integers(1, 127))
def test_a_changed_character_is_noticed(place: int, change: int) -> None:
    text = TOKEN
    at = place % (len(text) - 1)
    changed = f"{text[:at]}{chr(ord(text[at]) ^ change)}{text[at + 1 :]}"
    try:
        found = verified(changed)
    except (InvalidArgument, Refused):
        return
    # The last characters of base64 have bits that count for nothing.
    assert found == verified(text)


TOKEN = token()


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner)), st.text())
def test_any_claims_are_read_without_trouble(value: object, path: str) -> None:
    assert all(isinstance(each, str) for each in tokens.texts({path: value, "groups": value}, path))


@pytest.mark.parametrize(
    "change",
    [
        {"kty": "oct", "k": "c2VjcmV0"},
        {"use": "enc"},
        {"alg": "ES512"},
        {"alg": "none"},
        {"x": "?"},
        {"crv": "P-521"},
        {"kty": ["EC"]},
        {"kid": 7},
        {"d": "c2VjcmV0"},
    ],
    ids=str,
)
def test_a_key_that_is_not_taken(change: dict[str, Any]) -> None:
    [only] = signing_keys([raw(KEYS["ES256"], **change), raw(KEYS["RS256"])])
    assert only.algorithm == "RS256"


def test_weak_and_too_many_keys() -> None:
    assert signing_keys([raw(rsa.generate_private_key(65537, 1024))]) == ()  # noqa: S505 - weak on purpose
    with pytest.raises(Refused, match="101 keys"):
        signing_keys([raw(KEYS["ES256"])] * 101)


def test_the_clock_may_differ_a_little() -> None:
    assert verified(token(exp=NOW - 59, nbf=NOW + 59))
