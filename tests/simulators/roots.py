"""Roots of every kind of key that a device may hold, with their keys in this process."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from identity import der
from operations.errors import SpireError
from tests.simulators.pki import NOW, key_usage

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

KEYS: dict[str, PrivateKey] = {
    "P-256": ec.generate_private_key(ec.SECP256R1()),
    "P-384": ec.generate_private_key(ec.SECP384R1()),
    "RSA-3072": rsa.generate_private_key(65537, 3072),
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
}
DAY = timedelta(days=1)


@dataclass
class Root:
    """What a root's certificate says. `certificate` signs it by `above`, or by its own key."""

    key: PrivateKey
    name: str = "root"
    ca: bool | None = True
    path_length: int | None = None
    usage: tuple[str, ...] = ("key_cert_sign", "crl_sign")
    permitted: tuple[x509.GeneralName, ...] = ()
    not_before: datetime = NOW - DAY
    not_after: datetime = NOW + 3650 * DAY
    above: Root | None = None
    key_id: bool = True

    def certificate(self) -> bytes:
        issuer = self.above or self
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(self.name))
            .issuer_name(_name(issuer.name))
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.not_before)
            .not_valid_after(self.not_after)
        )
        if self.key_id:
            key_id = x509.SubjectKeyIdentifier.from_public_key(self.key.public_key())
            builder = builder.add_extension(key_id, critical=False)
        if self.ca is not None:
            builder = builder.add_extension(x509.BasicConstraints(self.ca, self.path_length), critical=True)
        if self.usage:
            builder = builder.add_extension(key_usage(*self.usage), critical=True)
        if self.permitted:
            builder = builder.add_extension(x509.NameConstraints(self.permitted, None), critical=True)
        return builder.sign(issuer.key, _hash(issuer.key)).public_bytes(Encoding.DER)


@dataclass
class SoftwareRootKey:
    """A root key as a device has it. `failing` is raised by each signature; `signatures` counts them."""

    key: PrivateKey
    name: str = "key_label 'root-2026'"
    failing: SpireError | None = None
    signs_with: PrivateKey | None = None
    signatures: int = 0
    closed: bool = field(default=False)

    @property
    def public_key(self) -> bytes:
        return der.subject_public_key_info(self.key.public_key())

    async def sign(self, message: bytes) -> bytes:
        if self.failing is not None:
            raise self.failing
        self.signatures += 1
        key = self.signs_with or self.key
        if isinstance(key, ed25519.Ed25519PrivateKey):
            return key.sign(message)
        if isinstance(key, rsa.RSAPrivateKey):
            return key.sign(message, padding.PKCS1v15(), hashes.SHA256())
        return key.sign(message, ec.ECDSA(_curve_hash(key)))

    async def close(self) -> None:
        self.closed = True


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _hash(key: PrivateKey) -> hashes.SHA256 | hashes.SHA384 | None:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return None
    return _curve_hash(key) if isinstance(key, ec.EllipticCurvePrivateKey) else hashes.SHA256()


def _curve_hash(key: ec.EllipticCurvePrivateKey) -> hashes.SHA256 | hashes.SHA384:
    return hashes.SHA256() if key.curve.key_size == 256 else hashes.SHA384()
