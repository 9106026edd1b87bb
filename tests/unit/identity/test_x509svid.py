"""X509-SVID standard, sections 2 to 5; RFC 5280 path validation."""

from __future__ import annotations

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.bindings.openssl.binding import Binding
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from identity import x509svid
from identity.spiffeid import SpiffeId, TrustDomain
from operations.errors import InvalidArgument, Refused
from tests.simulators.pki import HOUR, NOW, Authority, Certificate, ec_key
from tests.simulators.roots import KEYS, Root

TD = TrustDomain("example.org")
ROOT = Authority.root()
ROOTS = {TD: [ROOT.der]}
WORKLOAD = SpiffeId(TD, "/workload")


def test_a_path_ends_with_the_first_of_its_certificates() -> None:
    short = ROOT.sub(Certificate(uris=(), subject="short", ca=True, usage=("key_cert_sign",), not_after=NOW + HOUR / 2))
    assert x509svid.verify_until([short.sign(), short.der], ROOTS, NOW) == (WORKLOAD, NOW + HOUR / 2)
    with pytest.raises(Refused):
        x509svid.verify([short.sign(), short.der], ROOTS, NOW + HOUR / 2 + HOUR / 3600)


def test_leaf_of_a_root() -> None:
    assert x509svid.verify([ROOT.sign()], ROOTS, NOW) == WORKLOAD


@pytest.mark.parametrize("key", [ec_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)], ids=["p384", "rsa"])
def test_other_key_types(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
    root = Authority.root(key=key)
    assert x509svid.verify([root.sign(key=key)], {TD: [root.der]}, NOW) == WORKLOAD


def test_a_root_of_ed25519() -> None:
    root, key = Root(KEYS["Ed25519"]), ec_key()
    middle = Root(key, "middle", above=root).certificate()
    leaf = Authority(key, x509.load_der_x509_certificate(middle)).sign()
    assert x509svid.verify([leaf, middle], {TD: [root.certificate()]}, NOW) == WORKLOAD
    changed = bytearray(middle)
    changed[-1] ^= 1
    with pytest.raises(Refused, match="could not verify leaf certificate"):
        x509svid.verify([leaf, bytes(changed)], {TD: [root.certificate()]}, NOW)


def test_chain_with_intermediates_in_any_order() -> None:
    first = ROOT.sub()
    second = first.sub(Certificate(uris=(), subject="issuing", ca=True, usage=("key_cert_sign",)))
    leaf = second.sign()
    assert x509svid.verify([leaf, second.der, first.der], ROOTS, NOW) == WORKLOAD
    assert x509svid.verify([leaf, first.der, second.der, ROOT.der], ROOTS, NOW) == WORKLOAD
    with pytest.raises(Refused, match="unable to get"):
        x509svid.verify([leaf, second.der], ROOTS, NOW)


def test_one_of_many_roots_and_an_anchor_that_is_not_self_signed() -> None:
    intermediate = ROOT.sub()
    roots = {TD: [Authority.root().der, intermediate.der, intermediate.der]}
    assert x509svid.verify([intermediate.sign()], roots, NOW) == WORKLOAD


def test_roots_of_another_trust_domain_do_not_count() -> None:
    other = TrustDomain("other.org")
    with pytest.raises(Refused, match=r"no X\.509 bundle for trust domain"):
        x509svid.verify([ROOT.sign()], {other: [ROOT.der], TD: []}, NOW)
    stranger = Authority.root("spiffe://other.org")
    with pytest.raises(Refused, match="could not verify leaf certificate"):
        x509svid.verify([stranger.sign()], {TD: [ROOT.der], other: [stranger.der]}, NOW)


def test_a_forged_root_of_the_same_name_and_key_id_is_refused() -> None:
    with pytest.raises(Refused, match="could not verify leaf certificate"):
        x509svid.verify([Authority.root().sign()], ROOTS, NOW)


@pytest.mark.parametrize("now", [NOW - 2 * HOUR, NOW + 2 * HOUR], ids=["early", "late"])
def test_validity_is_that_of_the_given_time(now: datetime.datetime) -> None:
    with pytest.raises(Refused, match=r"certificate is not yet valid|certificate has expired"):
        x509svid.verify([ROOT.sign()], ROOTS, now)


def test_an_expired_intermediate_or_root_is_refused() -> None:
    old = ROOT.sub(Certificate(subject="old", ca=True, usage=("key_cert_sign",), not_after=NOW - HOUR / 2))
    with pytest.raises(Refused, match="expired"):
        x509svid.verify([old.sign(), old.der], ROOTS, NOW)
    with pytest.raises(Refused, match="expired"):
        x509svid.verify([ROOT.sign(Certificate(not_after=NOW + 90 * HOUR))], ROOTS, NOW + 48 * HOUR)


def test_uri_name_constraints_and_path_lengths_are_enforced() -> None:
    usage = ("key_cert_sign",)
    constrained = ROOT.sub(
        Certificate(subject="c", ca=True, path_length=0, usage=usage, permitted_uris=["example.org"])
    )
    assert x509svid.verify([constrained.sign(), constrained.der], ROOTS, NOW) == WORKLOAD
    elsewhere = ROOT.sub(Certificate(subject="e", ca=True, usage=usage, permitted_uris=["other.org"]))
    with pytest.raises(Refused, match="permitted subtree violation"):
        x509svid.verify([elsewhere.sign(), elsewhere.der], ROOTS, NOW)
    too_deep = constrained.sub(Certificate(subject="d", ca=True, usage=usage))
    with pytest.raises(Refused, match="path length constraint exceeded"):
        x509svid.verify([too_deep.sign(), too_deep.der, constrained.der], ROOTS, NOW)


@pytest.mark.parametrize(
    "issuer",
    [
        Certificate(subject="leaf"),
        Certificate(subject="no basic constraints", ca=None, usage=("key_cert_sign",)),
        Certificate(subject="no cert sign", ca=True, usage=("digital_signature",)),
    ],
    ids=lambda content: content.subject,
)
def test_only_cas_issue(issuer: Certificate) -> None:
    impostor = ROOT.sub(issuer)
    with pytest.raises(Refused, match="could not verify leaf certificate"):
        x509svid.verify([impostor.sign(), impostor.der], ROOTS, NOW)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (Certificate(uris=()), "certificate contains no URI SAN"),
        (Certificate(uris=("spiffe://example.org/a", "spiffe://example.org/b")), "more than one URI SAN"),
        (Certificate(uris=("https://example.org/a",)), "scheme is missing or invalid"),
        (Certificate(uris=("spiffe://example.org/a%2Fb",)), "path segment characters are limited"),
        (Certificate(ca=True), "CA flag set to true"),
        (Certificate(usage=("digital_signature", "key_cert_sign")), "KeyCertSign"),
        (Certificate(usage=("digital_signature", "crl_sign")), "KeyCrlSign"),
        (Certificate(usage=("key_agreement",)), "without digitalSignature"),
        (Certificate(usage=()), "without key usage"),
    ],
)
def test_leaf_rules(content: Certificate, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        x509svid.verify([ROOT.sign(content)], ROOTS, NOW)


def test_garbage_and_limits() -> None:
    with pytest.raises(InvalidArgument, match="empty certificates chain"):
        x509svid.verify([], ROOTS, NOW)
    with pytest.raises(InvalidArgument, match="unable to parse certificate"):
        x509svid.verify([b"\x30\x03abc"], ROOTS, NOW)
    with pytest.raises(InvalidArgument, match="unable to parse certificate"):
        x509svid.verify([ROOT.sign(), b""], ROOTS, NOW)
    with pytest.raises(InvalidArgument, match="longer than 10 certificates"):
        x509svid.verify([ROOT.sign()] * 11, ROOTS, NOW)
    with pytest.raises(InvalidArgument, match="unable to parse certificate: longer than"):
        x509svid.verify([bytes(100_000)], ROOTS, NOW)


def test_a_flipped_bit_is_refused() -> None:
    leaf = bytearray(ROOT.sign())
    leaf[-1] ^= 1
    with pytest.raises(Refused, match="could not verify leaf certificate"):
        x509svid.verify([bytes(leaf)], ROOTS, NOW)
    # SSL_get_error(3) relies on an empty error queue of the thread.
    assert Binding().lib.ERR_peek_error() == 0


def test_leaf_id_verifies_nothing() -> None:
    assert x509svid.leaf_id(Authority.root().sign()) == WORKLOAD


def test_weak_hash_of_an_rsa_issuer_is_refused() -> None:
    root = Authority.root(key=rsa.generate_private_key(65537, 2048))
    leaf = root.sign(Certificate(hash=hashes.SHA224()))  # stands in for SHA-1, which cryptography refuses to sign with
    with pytest.raises(Refused, match="weak or unknown hash"):
        x509svid.verify([leaf], {TD: [root.der]}, NOW)


INTERMEDIATE = ROOT.sub()
CHAIN = (INTERMEDIATE.sign(), INTERMEDIATE.der)


@settings(max_examples=400)
@given(st.integers(0, 1), st.integers(0), st.integers(1, 255))
def test_any_changed_byte_is_refused(which: int, position: int, change: int) -> None:
    changed = bytearray(CHAIN[which])
    changed[position % len(changed)] ^= change
    chain = list(CHAIN)
    chain[which] = bytes(changed)
    with pytest.raises((InvalidArgument, Refused)):
        x509svid.verify(chain, ROOTS, NOW)


@given(st.lists(st.binary(max_size=60), max_size=3))
def test_any_garbage_is_refused(chain: list[bytes]) -> None:
    with pytest.raises(InvalidArgument):
        x509svid.verify(chain, ROOTS, NOW)
