"""Certificates and public keys out of DER, parsed once.

A bundle's roots and a peer's chain are looked at for every connection, and the same bytes come again and again. The
caches are bounded and hold public values only.
"""

from __future__ import annotations

import warnings
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from operations.errors import InvalidArgument

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey
AuthorityKey = PublicKey | ed25519.Ed25519PublicKey
"""What may sign CA certificates: a root in a token may be of Ed25519, what is below it is not."""

# Certificates of older tools have serial numbers of zero or subjects with empty parts, and Go takes them. What
# cryptography has to say on standard error would look like a fault.
warnings.filterwarnings("ignore", "Parsed a serial number which wasn't positive")
warnings.filterwarnings("ignore", "Attribute's length must be")

_SEQUENCE = 0x30

# Far above what SPIFFE peers exchange.
_MAX_LENGTH = 64 * 1024


@lru_cache(maxsize=1024)
def certificate(der: bytes) -> x509.Certificate:
    """The certificate in these bytes, its extensions known to be readable. Raises InvalidArgument."""
    if len(der) > _MAX_LENGTH:
        raise InvalidArgument(f"unable to parse certificate: longer than {_MAX_LENGTH} bytes")
    try:
        parsed = x509.load_der_x509_certificate(der)
        _ = parsed.extensions  # parsed only when asked for
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, x509.InvalidVersion) as error:
        raise InvalidArgument("unable to parse certificate: not a well-formed X.509 certificate in DER") from error
    if parsed.serial_number < 0:  # RFC 5280, 4.1.2.2; that of old roots is zero at times
        raise InvalidArgument("unable to parse certificate: its serial number is negative")
    return parsed


def proves_possession(request: x509.CertificateSigningRequest, csr: bytes) -> bool:
    """Whether the key in a PKCS #10 request (RFC 2986), parsed from `csr`, has signed it. Raises UnsupportedAlgorithm.

    The octet before the signature says how many bits at its end are none of it (X.690, 8.6.2.2), which has to be zero;
    cryptography ignores it.
    """
    return request.is_signature_valid and csr[-len(request.signature) - 1] == 0


@lru_cache(maxsize=1024)
def public_key(der: bytes) -> PublicKey:
    """The RSA or EC key in a DER SubjectPublicKeyInfo. Raises InvalidArgument."""
    if len(der) > _MAX_LENGTH:
        raise InvalidArgument(f"unable to parse public key: longer than {_MAX_LENGTH} bytes")
    try:
        key = serialization.load_der_public_key(der)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidArgument("unable to parse public key: not a well-formed SubjectPublicKeyInfo in DER") from error
    if not isinstance(key, PublicKey):
        raise InvalidArgument("unsupported public key type: use RSA or ECDSA")
    return key


def subject_public_key_info(key: AuthorityKey) -> bytes:
    """The DER SubjectPublicKeyInfo (RFC 5280, 4.1) of a key."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


@lru_cache(maxsize=1024)
def certificate_key(der: bytes) -> bytes:
    """The DER SubjectPublicKeyInfo in a certificate, of an RSA or EC key. Raises InvalidArgument."""
    key = authority_key(der)
    if not isinstance(key, PublicKey):
        raise InvalidArgument("unsupported public key type: use RSA or ECDSA")
    return subject_public_key_info(key)


def authority_key(der: bytes) -> AuthorityKey:
    """The key in an authority's DER certificate. Raises InvalidArgument."""
    try:
        key = certificate(der).public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidArgument("unable to parse certificate: its public key is malformed") from error
    if not isinstance(key, AuthorityKey):
        raise InvalidArgument("unsupported public key type: use RSA, ECDSA or Ed25519")
    return key


def split(data: bytes) -> list[bytes]:
    """DER certificates that stand one after the other. Raises InvalidArgument.

    Only the lengths are read here (X.690, 8.1.3); what is inside is for the certificate parser.
    """
    certificates: list[bytes] = []
    while data:
        size = _size(data)
        if data[0] != _SEQUENCE or size > len(data):
            raise InvalidArgument("malformed certificate")
        certificates.append(data[:size])
        data = data[size:]
    return certificates


def _size(data: bytes) -> int:
    if len(data) < 2:
        raise InvalidArgument("malformed certificate")
    octets = data[1] & 0x7F if data[1] & 0x80 else 0
    length = int.from_bytes(data[2 : 2 + octets]) if octets else data[1]
    return 2 + octets + length
