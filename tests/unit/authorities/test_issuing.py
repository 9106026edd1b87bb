"""What devices sign is what cryptography's builder would have signed, but for the signature; nothing else leaves."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from authorities import issuing
from authorities.issuing import Limits, Request
from identity import asn1, x509svid
from identity.spiffeid import TrustDomain
from operations.errors import InvalidArgument, PermanentlyUnusable, Refused
from tests.simulators.pki import NOW, Authority, Certificate, csr, ec_key
from tests.simulators.roots import KEYS, PrivateKey, Root, SoftwareRootKey

TD = TrustDomain("example.org")
SECONDS = int(NOW.timestamp())
REQUEST_KEYS = [ec_key(), ec_key(ec.SECP384R1())]
CERTIFICATES = {
    name: x509.load_der_x509_certificate(Root(key, name, key_id=name != "P-384").certificate())
    for name, key in KEYS.items()
}

names = st.lists(
    st.tuples(
        st.sampled_from([NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME]),
        st.text(
            st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=16
        ),
    ),
    max_size=4,
)
hosts = st.lists(st.from_regex(r"\.?[a-z0-9_-]{1,20}(\.[a-z0-9_-]{1,20}){0,3}", fullmatch=True), max_size=4)
limits = st.builds(Limits, st.none() | st.integers(0, 1000), hosts.map(tuple))


def rebuilt(certificate: x509.Certificate, issuer: x509.Certificate, key: PrivateKey) -> x509.Certificate:
    """What the builder makes of the same values, signed by the same key."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(certificate.subject)
        .issuer_name(issuer.subject)
        .public_key(certificate.public_key())
        .serial_number(certificate.serial_number)
        .not_valid_before(certificate.not_valid_before_utc)
        .not_valid_after(certificate.not_valid_after_utc)
    )
    for extension in certificate.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else certificate.signature_hash_algorithm
    assert algorithm is None or isinstance(algorithm, hashes.SHA256 | hashes.SHA384)
    return builder.sign(key, algorithm)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(list(KEYS)), st.sampled_from(REQUEST_KEYS), names, limits, st.integers(0, 10**10))
async def test_what_a_device_signs_is_what_the_builder_builds(
    kind: str,
    key: ec.EllipticCurvePrivateKey,
    subject: list[tuple[x509.ObjectIdentifier, str]],
    wanted: Limits,
    ttl: int,
) -> None:
    attributes = [x509.NameAttribute(oid, text) for oid, text in subject]
    request = csr(key, uris=[TD.id], subject=x509.Name(attributes))
    issuer = CERTIFICATES[kind]
    device = SoftwareRootKey(KEYS[kind])
    made = await issuing.sign_by(device, issuer, Request(request, TD, ttl, SECONDS, wanted))
    certificate = x509.load_der_x509_certificate(made)
    certificate.verify_directly_issued_by(issuer)
    expected = rebuilt(certificate, issuer, KEYS[kind])
    assert certificate.tbs_certificate_bytes == expected.tbs_certificate_bytes
    assert certificate.signature_algorithm_oid == expected.signature_algorithm_oid
    assert list(asn1.children(made))[:2] == list(asn1.children(expected.public_bytes(Encoding.DER)))[:2]
    end = datetime.fromtimestamp(SECONDS + (ttl or issuing.DEFAULT_TTL), UTC)
    assert certificate.not_valid_after_utc == min(end, issuer.not_valid_after_utc)
    assert device.signatures == 1


@given(st.sampled_from(list(KEYS)), st.integers(0, 2**16), st.integers(1, 255))
async def test_any_changed_byte_of_a_signature_is_refused(kind: str, position: int, change: int) -> None:
    class Lying(SoftwareRootKey):
        async def sign(self, message: bytes) -> bytes:
            signature = bytearray(await super().sign(message))
            signature[position % len(signature)] ^= change
            return bytes(signature)

    request = csr(REQUEST_KEYS[0], uris=[TD.id])
    with pytest.raises(PermanentlyUnusable, match="made a wrong signature"):
        await issuing.sign_by(Lying(KEYS[kind]), CERTIFICATES[kind], Request(request, TD, 60, SECONDS))


@pytest.mark.parametrize("signature", [b"", b"\0", b"\x30\x00", b"\xff" * 4096], ids=["empty", "zero", "der", "long"])
@pytest.mark.parametrize("kind", KEYS)
async def test_what_is_no_signature_is_refused(kind: str, signature: bytes) -> None:
    class Broken(SoftwareRootKey):
        async def sign(self, message: bytes) -> bytes:
            return signature

    request = csr(REQUEST_KEYS[0], uris=[TD.id])
    with pytest.raises(PermanentlyUnusable, match="made a wrong signature"):
        await issuing.sign_by(Broken(KEYS[kind]), CERTIFICATES[kind], Request(request, TD, 60, SECONDS))


@pytest.mark.parametrize("name", ["example.org", "prod", "under_score.example", "-.org", "a.b.c.d.example"])
@pytest.mark.parametrize("kind", KEYS)
async def test_svids_pass_the_name_constraints_of_their_trust_domain(kind: str, name: str) -> None:
    trust_domain, key = TrustDomain(name), REQUEST_KEYS[0]
    request = Request(csr(key, uris=[trust_domain.id]), trust_domain, 3600, SECONDS, Limits(0, (name,)))
    own = await issuing.sign_by(SoftwareRootKey(KEYS[kind]), CERTIFICATES[kind], request)
    ca = Authority(key, x509.load_der_x509_certificate(own))
    root = CERTIFICATES[kind].public_bytes(Encoding.DER)
    for host in (name, f"other-{name}", f"sub.{name}"):
        leaf = ca.sign(Certificate(uris=(f"spiffe://{host}/workload",)))
        roots = {TrustDomain(host): [root]}
        if host == name:
            assert x509svid.verify([leaf, own], roots, NOW).trust_domain == trust_domain
        else:
            with pytest.raises(Refused, match="permitted subtree violation"):
                x509svid.verify([leaf, own], roots, NOW)


async def test_a_key_that_no_device_has_is_refused() -> None:
    key = ec.generate_private_key(ec.SECP521R1())
    issuer = x509.load_der_x509_certificate(Root(key).certificate())
    with pytest.raises(InvalidArgument, match="unsupported key"):
        await issuing.sign_by(SoftwareRootKey(key), issuer, Request(csr(key, uris=[TD.id]), TD, 60, SECONDS))
