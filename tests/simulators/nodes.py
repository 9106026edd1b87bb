"""A PKI of nodes for x509pop: CAs of any shape, leaves good and bad, with real times."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from tests.simulators.pki import key_usage

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

DAY = datetime.timedelta(days=1)


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


@dataclass
class Shape:
    """What to put into a certificate; the defaults make a good node's."""

    cn: str = "node-1.example.org"
    uris: Sequence[str] = ()
    ips: Sequence[str] = ()
    ca: bool | None = False
    path_length: int | None = None
    usage: Sequence[str] = ("digital_signature",)
    begins: datetime.timedelta = -DAY
    ends: datetime.timedelta = DAY
    hash: hashes.SHA224 | hashes.SHA256 = field(default_factory=hashes.SHA256)
    serial: int = 0
    critical: bool = False


CA = Shape(ca=True, usage=("key_cert_sign", "crl_sign"), ends=10 * DAY)


@dataclass
class Authority:
    key: Key
    certificate: x509.Certificate

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def node(self, shape: Shape | None = None, key: Key | None = None) -> Authority:
        """A certificate that this one signs."""
        shape, key = shape or Shape(), key or ec_key()
        return Authority(key, _build(shape, key, self.certificate.subject, self.key))

    def sub(self, name: str = "intermediate", key: Key | None = None, shape: Shape | None = None) -> Authority:
        shape = shape or CA
        return self.node(_named(shape, name), key)

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Certificate and key as files in PEM."""
        certificate, key = folder / f"{name}.crt.pem", folder / f"{name}.key.pem"
        certificate.write_bytes(self.pem)
        key.write_bytes(private_pem(self.key))
        return certificate, key


def root(name: str = "root", key: Key | None = None, shape: Shape | None = None) -> Authority:
    key = key or ec_key()
    return Authority(key, _build(_named(shape or CA, name), key, _name(name), key))


def ec_key(curve: ec.EllipticCurve | None = None) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(curve or ec.SECP256R1())


def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


def private_pem(key: Key, form: serialization.PrivateFormat = serialization.PrivateFormat.PKCS8) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _named(shape: Shape, name: str) -> Shape:
    return replace(shape, cn=name)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)] if text else [])


def _build(shape: Shape, key: Key, issuer: x509.Name, issuer_key: Key) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(shape.cn))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(shape.serial or x509.random_serial_number())
        .not_valid_before(now() + shape.begins)
        .not_valid_after(now() + shape.ends)
    )
    if shape.ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(shape.ca, shape.path_length), critical=True)
    if shape.usage:
        builder = builder.add_extension(key_usage(*shape.usage), critical=True)
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in shape.uris]
    names += [x509.IPAddress(ipaddress.ip_address(ip)) for ip in shape.ips]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if shape.critical:
        unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")
        builder = builder.add_extension(unknown, critical=True)
    algorithm = None if isinstance(issuer_key, ed25519.Ed25519PrivateKey) else shape.hash
    return builder.sign(issuer_key, algorithm)
