"""SPIFFE Trust Domain and Bundle standard, section 4; RFC 7517; types.Bundle."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from generated.spire.api.types import bundle_pb2
from identity import bundles
from identity.bundles import Bundle, JwtAuthority, WitAuthority, X509Authority
from identity.spiffeid import TrustDomain
from operations.errors import InvalidArgument
from tests.simulators.pki import Authority, ec_key, spki
from tests.simulators.roots import KEYS as ROOT_KEYS
from tests.simulators.roots import Root

TD = TrustDomain("example.org")
RSA = rsa.generate_private_key(65537, 2048)
KEYS = [spki(key) for key in (ec_key(), ec_key(ec.SECP384R1()), ec_key(ec.SECP521R1()), RSA)]
EDWARDS = Root(ROOT_KEYS["Ed25519"], key_id=False).certificate()
CERTIFICATES = [*(Authority.root(key=key).der for key in (ec_key(), ec_key(ec.SECP384R1()), RSA)), EDWARDS]

x509_authorities = st.lists(st.builds(X509Authority, st.sampled_from(CERTIFICATES)), unique=True, max_size=3)
jwt_authorities = st.lists(
    st.builds(JwtAuthority, st.text(min_size=1, max_size=20), st.sampled_from(KEYS)),
    unique_by=lambda authority: authority.key_id,
    max_size=4,
)
wit_authorities = st.lists(
    st.builds(WitAuthority, st.text(min_size=1, max_size=20), st.sampled_from(KEYS)),
    unique_by=lambda authority: authority.key_id,
    max_size=3,
)
documents = st.builds(
    Bundle,
    st.just(TD),
    x509_authorities.map(tuple),
    jwt_authorities.map(tuple),
    st.integers(0, 2**31),
    st.integers(0, 2**63 - 1),
    wit_authorities.map(tuple),
)
messages = st.builds(
    Bundle,
    st.just(TD),
    st.lists(st.builds(X509Authority, st.binary(max_size=20), st.booleans())).map(tuple),
    st.lists(
        st.builds(JwtAuthority, st.text(max_size=20), st.binary(max_size=20), st.integers(0, 2**63 - 1), st.booleans())
    ).map(tuple),
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**64 - 1),
)


@given(documents)
def test_jwks_comes_back(bundle: Bundle) -> None:
    assert Bundle.from_jwks(TD, bundle.to_jwks()) == bundle
    bundle.validate()


@given(messages)
def test_message_comes_back(bundle: Bundle) -> None:
    message = bundle_pb2.Bundle.FromString(bundle.to_proto().SerializeToString())
    assert Bundle.from_proto(message) == bundle


@given(st.lists(st.sampled_from(CERTIFICATES), min_size=1, unique=True), st.sampled_from(["\n", "\r\n"]))
def test_pem_comes_back(certificates: list[bytes], newline: str) -> None:
    bundle = Bundle(TD, tuple(X509Authority(der) for der in certificates))
    text = "a comment\n" + bundle.to_pem().replace("\n", newline)
    assert Bundle.from_pem(TD, text) == bundle
    assert Bundle.from_pem(TD, text.encode()) == bundle
    assert bundles.from_pem(text) == certificates


@given(st.text(max_size=40) | st.binary(max_size=40))
def test_garbage_is_an_invalid_argument(garbage: str | bytes) -> None:
    with pytest.raises(InvalidArgument):
        Bundle.from_jwks(TD, garbage)
    with pytest.raises(InvalidArgument):
        Bundle.from_pem(TD, garbage)


@pytest.mark.parametrize(
    "text", ["-----BEGIN CERTIFICATE-----" * 100_000, "-----BEGIN " + "A " * 1_000_000, "-----" * 1_000_000]
)
def test_much_garbage_takes_no_time(text: str) -> None:
    """A pattern that looks for an end from each beginning takes hours."""
    started = time.process_time()
    with pytest.raises(InvalidArgument):
        Bundle.from_pem(TD, text)
    assert time.process_time() - started < 10


@pytest.mark.parametrize(
    "document",
    [
        '{"keys":' + "[" * 200_000,
        json.dumps({"keys": [{"use": "jwt-svid", "kid": "a", "kty": "RSA", "e": "AQAB", "n": "_" * 100_000}]}),
    ],
)
def test_a_monstrous_document_is_an_invalid_argument(document: str) -> None:
    with pytest.raises(InvalidArgument):
        Bundle.from_jwks(TD, document)


def test_document_looks_as_spire_writes_it() -> None:
    bundle = Bundle(TD, (X509Authority(CERTIFICATES[0]),), (JwtAuthority("k", KEYS[3]),), 300, 7)
    document = json.loads(bundle.to_jwks())
    assert list(document) == ["keys", "spiffe_sequence", "spiffe_refresh_hint"]
    assert list(document["keys"][0]) == ["use", "kty", "crv", "x", "y", "x5c"]
    assert list(document["keys"][1]) == ["use", "kty", "kid", "n", "e"]
    assert [key["use"] for key in document["keys"]] == ["x509-svid", "jwt-svid"]
    assert document["keys"][1]["e"] == "AQAB"
    assert bundle.to_jwks().startswith('{\n    "keys": [\n        {\n            "use": "x509-svid",\n')
    assert Bundle(TD).to_jwks() == '{\n    "keys": []\n}'


def test_standard_document_has_plain_jwt_keys_only() -> None:
    bundle = Bundle(TD, (X509Authority(CERTIFICATES[0]),), (JwtAuthority("k", KEYS[0]),), 300, 7)
    document = json.loads(bundle.to_jwks(x509=False, standard=True))
    assert list(document) == ["keys"]
    assert [list(key) for key in document["keys"]] == [["kty", "kid", "crv", "x", "y"]]


def test_wit_keys_stand_beside_the_others_by_their_use() -> None:
    bundle = Bundle(TD, (), (JwtAuthority("k", KEYS[0]),), wit_authorities=(WitAuthority("k", KEYS[1]),))
    document = json.loads(bundle.to_jwks())
    assert [(key["use"], key["kid"], key["crv"]) for key in document["keys"]] == [
        ("jwt-svid", "k", "P-256"),
        ("wit-svid", "k", "P-384"),
    ]
    assert Bundle.from_jwks(TD, bundle.to_jwks()) == bundle
    # A reader that knows no uses would take one for the other.
    assert len(json.loads(bundle.to_jwks(standard=True))["keys"]) == 1
    assert json.loads(bundle.to_jwks(wit=False))["keys"] == document["keys"][:1]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kid": ""}, "missing key ID in wit-svid entry 0"),
        ({"kty": "OKP"}, "key entry 0 has the unsupported key type OKP P-256"),
    ],
)
def test_bad_wit_keys(changes: dict[str, str], reason: str) -> None:
    key = json.loads(Bundle(TD, wit_authorities=(WitAuthority("k", KEYS[0]),)).to_jwks())["keys"][0]
    with pytest.raises(InvalidArgument, match=reason):
        Bundle.from_jwks(TD, json.dumps({"keys": [{**key, **changes}]}))
    other = json.loads(Bundle(TD, wit_authorities=(WitAuthority("k", KEYS[1]),)).to_jwks())["keys"][0]
    with pytest.raises(InvalidArgument, match='wit-svid entry 1 has the key ID "k" of another entry'):
        Bundle.from_jwks(TD, json.dumps({"keys": [key, other]}))


def test_short_coordinates_are_padded() -> None:
    # RFC 7518, 6.2.1.2: always the full length of the curve.
    key = next(key for key in iter(ec_key, None) if key.public_key().public_numbers().x < 2**248)
    bundle = Bundle(TD, (), (JwtAuthority("k", spki(key)),))
    assert len(json.loads(bundle.to_jwks())["keys"][0]["x"]) == 43
    assert Bundle.from_jwks(TD, bundle.to_jwks()) == bundle


def entry(**changes: Any) -> str:
    key = json.loads(Bundle(TD, (), (JwtAuthority("k", KEYS[0]),)).to_jwks())["keys"][0]
    return json.dumps({"keys": [{**key, **changes}]})


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ("{}", "missing required field `keys`"),
        ('{"keys": {}}', "unable to parse JWKS"),
        ('{"keys": [1]}', "unable to parse JWKS"),
        ('{"keys": [{}]}', "missing use for key entry 0"),
        ('{"keys": [], "spiffe_sequence": -1}', "unable to parse JWKS"),
        (entry(kid=""), "missing key ID in jwt-svid entry 0"),
        (entry(kty="OKP"), "key entry 0 has the unsupported key type OKP P-256"),
        (entry(crv="P-999"), "unsupported key type EC P-999"),
        (entry(x="AAAA"), "key entry 0 is not a valid EC key"),
        (entry(x="!"), "key entry 0 is not a valid EC key"),
        (entry(kty="RSA", n="AQAB", e="AQAB"), "key entry 0 is not a valid RSA key"),
        (entry(use="x509-svid"), "expected a single certificate in x509-svid entry 0; got 0"),
        (entry(use="x509-svid", x5c=["!"]), "is not valid base64"),
        (entry(use="x509-svid", x5c=["AAAA"]), "unable to parse certificate"),
        (entry(use="x509-svid", x5c=[base64.b64encode(CERTIFICATES[0]).decode()]), "has another public key"),
        (" " * (4 * 1024 * 1024 + 1), "longer than 4194304 bytes"),
    ],
)
def test_faults_of_documents(document: str, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        Bundle.from_jwks(TD, document)


def test_keys_of_a_kind_to_come_are_ignored() -> None:
    """Section 4.2.1 of SPIFFE's Trust Domain and Bundle: what another domain adds must not cost the rest."""
    document = json.loads(entry())
    document["keys"].insert(0, {"use": "jwt-svid", "kty": "AKP", "kid": "new", "pub": "AAAA"})
    assert Bundle.from_jwks(TD, json.dumps(document)) == Bundle.from_jwks(TD, entry())


def test_unknown_uses_are_ignored_whatever_they_hold() -> None:
    assert Bundle.from_jwks(TD, '{"keys": [{"use": "ssh", "x5c": 1}]}') == Bundle(TD)


def test_one_key_id_names_one_key() -> None:
    one = json.loads(entry())["keys"][0]
    other = {**json.loads(Bundle(TD, (), (JwtAuthority("k", KEYS[1]),)).to_jwks())["keys"][0]}
    assert len(Bundle.from_jwks(TD, json.dumps({"keys": [one, one]})).jwt_authorities) == 1
    with pytest.raises(InvalidArgument, match="of another entry"):
        Bundle.from_jwks(TD, json.dumps({"keys": [one, other]}))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no PEM blocks"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n", "no PEM blocks"),
        (bundles.to_pem([CERTIFICATES[0]]) + "-----BEGIN CERTIFICATE-----\nAA", "cut short"),
        (
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            'expected block type "CERTIFICATE"; got "PRIVATE KEY"',
        ),
        ("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n", "not valid base64"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "unable to parse certificate"),
    ],
)
def test_faults_of_pem(text: str, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        Bundle.from_pem(TD, text)


def test_validate_looks_at_what_a_message_brought() -> None:
    with pytest.raises(InvalidArgument, match="unable to parse certificate"):
        Bundle(TD, (X509Authority(b"x"),)).validate()
    with pytest.raises(InvalidArgument, match="unable to parse public key"):
        Bundle(TD, (), (JwtAuthority("k", b"x"),)).validate()
    with pytest.raises(InvalidArgument, match="missing key ID"):
        Bundle(TD, (), (JwtAuthority("", KEYS[0]),)).validate()


def test_an_ed25519_root_is_an_octet_key_pair() -> None:
    """RFC 8037, section 2. It signs no JWT-SVIDs."""
    bundle = Bundle(TD, (X509Authority(EDWARDS),))
    [entry] = json.loads(bundle.to_jwks())["keys"]
    assert (entry["kty"], entry["crv"], len(entry["x"])) == ("OKP", "Ed25519", 43)
    for change in ({"x": entry["x"][::-1]}, {"crv": "X25519"}, {"kty": "EC"}, {"x": ""}):
        with pytest.raises(InvalidArgument, match="another public key"):
            Bundle.from_jwks(TD, json.dumps({"keys": [entry | change]}))
    with pytest.raises(InvalidArgument, match="unsupported key type OKP Ed25519"):
        Bundle.from_jwks(TD, json.dumps({"keys": [entry | {"use": "jwt-svid", "kid": "a"}]}))
