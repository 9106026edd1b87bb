"""A certificate authority for tests, which can also make what no sane one would."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
HOUR = datetime.timedelta(hours=1)
KEY_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def ec_key(curve: ec.EllipticCurve | None = None) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(curve or ec.SECP256R1())


def spki(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def pkcs8(key: PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def key_usage(*names: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{name: name in names for name in KEY_USAGES})


@dataclass
class Certificate:
    """What to put into a certificate; the defaults make a good X509-SVID of an hour."""

    uris: Sequence[str] = ("spiffe://example.org/workload",)
    subject: str = ""
    ca: bool | None = False
    path_length: int | None = None
    usage: Sequence[str] = ("digital_signature",)
    permitted_uris: Sequence[str] = ()
    not_before: datetime.datetime = NOW - HOUR
    not_after: datetime.datetime = NOW + HOUR
    hash: hashes.SHA224 | hashes.SHA256 = field(default_factory=hashes.SHA256)


@dataclass
class Authority:
    """A CA certificate with its key. `sign` makes leaves, `sub` further CAs."""

    key: PrivateKey
    certificate: x509.Certificate

    @classmethod
    def root(cls, uri: str = "spiffe://example.org", name: str = "root", key: PrivateKey | None = None) -> Authority:
        key = key or ec_key()
        content = _ca(uri, name)
        subject = _name(name)
        return cls(key, _build(content, key, subject, key, None))

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    def sign(self, content: Certificate | None = None, key: PrivateKey | None = None) -> bytes:
        """A DER certificate."""
        content = content or Certificate()
        built = _build(content, key or ec_key(), self.certificate.subject, self.key, self.certificate)
        return built.public_bytes(serialization.Encoding.DER)

    def sub(self, content: Certificate | None = None, key: PrivateKey | None = None) -> Authority:
        key = key or ec_key()
        content = content or _ca("spiffe://example.org", "intermediate")
        return Authority(key, x509.load_der_x509_certificate(self.sign(content, key)))


def _ca(uri: str, name: str) -> Certificate:
    return Certificate(
        uris=(uri,), subject=name, ca=True, usage=("key_cert_sign", "crl_sign"), not_after=NOW + 24 * HOUR
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)] if text else [])


def _build(
    content: Certificate, key: PrivateKey, issuer: x509.Name, issuer_key: PrivateKey, parent: x509.Certificate | None
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(content.subject))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(content.not_before)
        .not_valid_after(content.not_after)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if parent is not None:
        identifier = parent.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
        builder = builder.add_extension(authority, critical=False)
    if content.ca is not None:
        constraints = x509.BasicConstraints(content.ca, content.path_length)
        builder = builder.add_extension(constraints, critical=True)
    if content.usage:
        builder = builder.add_extension(key_usage(*content.usage), critical=True)
    if content.uris:
        names = [x509.UniformResourceIdentifier(uri) for uri in content.uris]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=not content.subject)
    if content.permitted_uris:
        permitted = [x509.UniformResourceIdentifier(host) for host in content.permitted_uris]
        builder = builder.add_extension(x509.NameConstraints(permitted, None), critical=True)
    return builder.sign(issuer_key, content.hash)


def csr(
    key: PrivateKey,
    *,
    uris: Sequence[str] = (),
    dns_names: Sequence[str] = (),
    subject: x509.Name | None = None,
) -> bytes:
    """A DER PKCS #10 request."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject or x509.Name([]))
    names = [*map(x509.DNSName, dns_names), *map(x509.UniformResourceIdentifier, uris)]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
