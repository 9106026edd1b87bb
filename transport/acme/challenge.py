"""The certificate by which a server proves that it answers for a name (RFC 8737, 3)."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from operations.errors import Refused
from transport.tls import InProcessIdentity

ALPN = b"acme-tls/1"
TYPE = "tls-alpn-01"
IDENTIFIER = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")

_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,512}")  # RFC 8555, 8.3
_DAY = timedelta(days=1)
_OCTET_STRING = b"\x04\x20"


def key_authorization(token: str, thumbprint: str) -> str:
    """RFC 8555, 8.1. Raises Refused for what is no token."""
    if not _TOKEN.fullmatch(token):
        raise Refused("proving the domain: the ACME server's token is none (RFC 8555, 8.3)")
    return f"{token}.{thumbprint}"


def answer(domain: str, authorization: str) -> InProcessIdentity:
    """A fresh key, and a certificate by itself for the domain with the digest of the key authorization."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "acme-challenge")])
    digest = hashlib.sha256(authorization.encode()).digest()
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + _DAY)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(domain)]), critical=False)
        .add_extension(x509.UnrecognizedExtension(IDENTIFIER, _OCTET_STRING + digest), critical=True)
        .sign(key, hashes.SHA256())
    )
    return InProcessIdentity((made.public_bytes(Encoding.DER),), private_bytes(key))


def private_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
