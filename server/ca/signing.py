"""Certificates signed by keys that live elsewhere: what is to be signed goes out as a digest."""

from __future__ import annotations

import hashlib
import secrets
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from identity import asn1, unsigned
from identity.unsigned import Algorithm
from plugins.keymanager import Hash, Key, KeyType, Scheme

# Digests as strong as their keys; the same choice as SPIRE's, also for the JWS algorithms ES256, ES384 and RS256.
SCHEMES = {
    KeyType.EC_P256: Scheme(Hash.SHA256),
    KeyType.EC_P384: Scheme(Hash.SHA384),
    KeyType.RSA_2048: Scheme(Hash.SHA256),
    KeyType.RSA_4096: Scheme(Hash.SHA256),
}
_ALGORITHMS = {
    KeyType.EC_P256: Algorithm.ECDSA_SHA256,
    KeyType.EC_P384: Algorithm.ECDSA_SHA384,
    KeyType.RSA_2048: Algorithm.RSA_SHA256,
    KeyType.RSA_4096: Algorithm.RSA_SHA256,
}

certificate = unsigned.signed
"""The DER certificate, or certification request, of its three parts."""


def digest(data: bytes, scheme: Scheme) -> bytes:
    return hashlib.new(scheme.hash.value, data).digest()


def tbs_certificate(builder: x509.CertificateBuilder, key_type: KeyType) -> tuple[bytes, bytes]:
    """The DER TBSCertificate of a complete builder, and the AlgorithmIdentifier of its issuer's signatures."""
    return unsigned.certificate(builder, _ALGORITHMS[key_type])


def request_info(
    builder: x509.CertificateSigningRequestBuilder, key_type: KeyType, public_key: bytes
) -> tuple[bytes, bytes]:
    """The DER CertificationRequestInfo (RFC 2986, 4.1) of a builder for this key, and its AlgorithmIdentifier."""
    return unsigned.request(builder, _ALGORITHMS[key_type], public_key)


async def sign_certificate(builder: x509.CertificateBuilder, key: Key) -> bytes:
    """Have a key sign the certificate of a builder. Raises what the key raises."""
    scheme = SCHEMES[key.key_type]
    tbs, algorithm = tbs_certificate(builder, key.key_type)
    return certificate(tbs, algorithm, await key.sign(digest(tbs, scheme), scheme))


def subject_key_id(public_key: bytes) -> bytes:
    """RFC 5280, 4.2.1.2, method 1: SHA-1 of the key's bits in a DER SubjectPublicKeyInfo."""
    _, bits = asn1.children(public_key)
    start, end = asn1.content_of(bits)
    return hashlib.sha1(bits[start + 1 : end], usedforsecurity=False).digest()


def public_key_of(parsed: x509.Certificate) -> bytes:
    """The DER SubjectPublicKeyInfo in a certificate."""
    return parsed.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def issuer_key_id(issuer: x509.Certificate) -> bytes:
    """The key identifier that an issuer's leaves refer to: its own, or the RFC's where it has none."""
    try:
        return issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except x509.ExtensionNotFound:
        return subject_key_id(public_key_of(issuer))


def new_serial() -> int:
    """A random serial number from 1 to 2^128 - 1 (CA/Browser Forum BR 7.1: at least 64 bits of randomness)."""
    return secrets.randbelow(2**128 - 1) + 1


def utc(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
