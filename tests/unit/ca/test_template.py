"""Spliced leaves are, byte for byte, what cryptography's builder makes of the same values."""

from __future__ import annotations

import hashlib
from datetime import UTC

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from identity import asn1, der
from keystores.memory import MemoryKeyManager
from plugins.keymanager import KeyType
from server.ca import names, signing, template
from server.ca.template import Leaf, LeafTemplate
from tests.simulators.pki import NOW, Authority, ec_key, spki

RSA = rsa.generate_private_key(65537, 2048)
ISSUERS = {
    KeyType.EC_P256: Authority.root().certificate,
    KeyType.EC_P384: Authority.root(key=ec_key(ec.SECP384R1())).certificate,
    KeyType.RSA_2048: Authority.root(key=RSA).certificate,
}
TEMPLATES = {key_type: LeafTemplate(issuer, key_type) for key_type, issuer in ISSUERS.items()}
PUBLIC_KEYS = [
    spki(key)
    for key in (
        ec_key(),
        ec_key(),
        ec_key(ec.SECP384R1()),
        ec_key(ec.SECP521R1()),
        RSA,
        rsa.generate_private_key(65537, 3072),
        rsa.generate_private_key(3, 2048),
    )
]
YEAR_2050 = 2524608000
YEAR_9999 = 253402300799

labels = st.from_regex(r"[a-z0-9]{1,63}", fullmatch=True)
dns_names = st.lists(labels, min_size=1, max_size=4).map(".".join)
words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
subjects = st.one_of(
    st.just(x509.Name([])),
    st.builds(names.leaf_name, labels),
    st.lists(words, min_size=1, max_size=2, unique=True).map(
        lambda values: x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, value) for value in values])
    ),
)
times = st.one_of(st.integers(0, YEAR_9999 - 1), st.sampled_from([0, YEAR_2050 - 1, YEAR_2050, YEAR_9999 - 1]))
serials = st.one_of(st.integers(1, 2**128 - 1), st.sampled_from([1, 127, 128, 255, 256, 2**127, 2**128 - 1]))


@st.composite
def leaves(draw: st.DrawFn) -> tuple[Leaf, x509.Name]:
    subject = draw(subjects)
    first, second = sorted((draw(times), draw(times)))
    leaf = Leaf(
        serial=draw(serials),
        not_before=first,
        not_after=second,
        subject=subject.public_bytes(),
        spiffe_id="spiffe://" + draw(st.from_regex(r"[a-z0-9.]{1,60}/[A-Za-z0-9._-]{1,200}", fullmatch=True)),
        dns_names=tuple(draw(st.lists(dns_names, max_size=5))),
        public_key=draw(st.sampled_from(PUBLIC_KEYS)),
    )
    return leaf, subject


@given(leaves(), st.sampled_from(sorted(ISSUERS, key=lambda key_type: key_type.value)))
def test_equal_to_the_builder(leaf_and_subject: tuple[Leaf, x509.Name], key_type: KeyType) -> None:
    leaf, subject = leaf_and_subject
    expected, algorithm = signing.tbs_certificate(template.builder(ISSUERS[key_type], leaf, subject), key_type)
    assert TEMPLATES[key_type].tbs(leaf) == expected
    assert TEMPLATES[key_type].algorithm == algorithm


@given(leaves())
def test_whole_certificates_are_read_back(leaf_and_subject: tuple[Leaf, x509.Name]) -> None:
    leaf, subject = leaf_and_subject
    made = TEMPLATES[KeyType.EC_P256]
    parsed = x509.load_der_x509_certificate(signing.certificate(made.tbs(leaf), made.algorithm, b"signature"))
    assert parsed.signature == b"signature"
    assert parsed.serial_number == leaf.serial
    assert parsed.subject == subject
    assert signing.public_key_of(parsed) == leaf.public_key
    assert (parsed.not_valid_before_utc, parsed.not_valid_after_utc) == (
        signing.utc(leaf.not_before),
        signing.utc(leaf.not_after),
    )
    san = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert san.critical == (not list(subject))
    assert san.value.get_values_for_type(x509.DNSName) == list(leaf.dns_names)
    assert san.value.get_values_for_type(x509.UniformResourceIdentifier) == [leaf.spiffe_id]
    assert len(parsed.extensions) == 6


def test_an_rsa_issuers_certificate_is_the_builders_to_the_last_byte() -> None:
    # RSA signatures are deterministic: here even the signature can be compared.
    issuer = ISSUERS[KeyType.RSA_2048]
    subject = names.leaf_name()
    leaf = Leaf(7, 0, 9, subject.public_bytes(), "spiffe://example.org/w", (), PUBLIC_KEYS[0])
    built = template.builder(issuer, leaf, subject).sign(RSA, hashes.SHA256())
    made = TEMPLATES[KeyType.RSA_2048]
    spliced = signing.certificate(made.tbs(leaf), made.algorithm, built.signature)
    assert spliced == built.public_bytes(Encoding.DER)


@pytest.mark.parametrize("public_key", PUBLIC_KEYS)
def test_key_identifiers_are_those_of_rfc_5280(public_key: bytes) -> None:
    expected = x509.SubjectKeyIdentifier.from_public_key(der.public_key(public_key)).digest
    assert signing.subject_key_id(public_key) == expected


@given(st.integers(0, 2**160))
def test_integers(value: int) -> None:
    encoded = asn1.integer(value)
    start, end = asn1.content_of(encoded)
    assert end == len(encoded)
    assert int.from_bytes(encoded[start:end], "big", signed=True) == value
    assert end - start == 1 or encoded[start : start + 2] >= b"\x00\x80"


@given(st.binary(max_size=70_000))
def test_elements_and_their_children(content: bytes) -> None:
    inner = asn1.element(asn1.OCTET_STRING, content)
    outer = asn1.element(asn1.SEQUENCE, inner + inner)
    assert list(asn1.children(outer)) == [inner, inner]


@given(st.binary(max_size=40))
def test_walking_over_garbage_ends(garbage: bytes) -> None:
    try:
        list(asn1.children(garbage))
    except (ValueError, IndexError):
        return


@pytest.mark.parametrize("key_type", list(KeyType))
async def test_certificates_signed_through_a_key(key_type: KeyType) -> None:
    key = await MemoryKeyManager().generate("k", key_type)
    subject = names.leaf_name()
    leaf = Leaf(7, 0, 9, subject.public_bytes(), "spiffe://example.org/w", (), key.public_key)
    signed = await signing.sign_certificate(template.builder(ISSUERS[KeyType.EC_P256], leaf, subject), key)
    parsed = x509.load_der_x509_certificate(signed)
    scheme = signing.SCHEMES[key_type]
    assert parsed.signature_hash_algorithm is not None
    assert parsed.signature_hash_algorithm.name == scheme.hash.value
    assert signing.digest(b"x", scheme) == hashlib.new(scheme.hash.value, b"x").digest()


def test_serial_numbers_are_positive_and_of_128_bits() -> None:
    serial_numbers = [signing.new_serial() for _ in range(2000)]
    assert len(set(serial_numbers)) == len(serial_numbers)
    assert all(0 < serial < 2**128 for serial in serial_numbers)
    assert max(serial.bit_length() for serial in serial_numbers) == 128


def test_times_are_utc() -> None:
    assert signing.utc(int(NOW.timestamp())) == NOW
    assert signing.utc(0).tzinfo is UTC


def test_a_long_first_dns_name_is_in_the_san_only() -> None:
    assert names.leaf_name("a" * 64).get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    assert names.leaf_name("a" * 65) == names.leaf_name()


@given(
    st.one_of(
        st.tuples(st.integers(0, 1), st.integers(0, 39)),
        st.tuples(st.just(2), st.integers(0, 2**32)),
    ),
    st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=8),
)
def test_object_identifiers_are_the_librarys(start: tuple[int, int], rest: list[int]) -> None:
    dotted = ".".join(map(str, (*start, *rest)))
    name = x509.Name([x509.NameAttribute(x509.ObjectIdentifier(dotted), "x")])
    [relative] = asn1.children(name.public_bytes())
    [attribute] = asn1.children(relative)
    oid, _ = asn1.children(attribute)
    assert asn1.object_identifier(dotted) == oid


@pytest.mark.parametrize(
    "text", ["", "1", "1.", "a.b", "3.1", "1.40", "0.40.1", "-1.2", "1.2.+3", "1.2.٣", "1.2." + "9" * 40]
)
def test_what_is_no_object_identifier(text: str) -> None:
    with pytest.raises(ValueError, match="no object identifier"):
        asn1.object_identifier(text)
