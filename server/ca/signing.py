"""Certificates signed by keys that live elsewhere: what is to be signed goes out as a digest."""

from __future__ import annotations

import hashlib
import secrets
from datetime import UTC, datetime
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from plugins.keymanager import Hash, Key, KeyType, Scheme
from server.ca import der

# Digests as strong as their keys; the same choice as SPIRE's, also for the JWS algorithms ES256, ES384 and RS256.
SCHEMES = {
    KeyType.EC_P256: Scheme(Hash.SHA256),
    KeyType.EC_P384: Scheme(Hash.SHA384),
    KeyType.RSA_2048: Scheme(Hash.SHA256),
    KeyType.RSA_4096: Scheme(Hash.SHA256),
}
_HASHES: dict[Hash, hashes.SHA256 | hashes.SHA384 | hashes.SHA512] = {
    Hash.SHA256: hashes.SHA256(),
    Hash.SHA384: hashes.SHA384(),
    Hash.SHA512: hashes.SHA512(),
}


def digest(data: bytes, scheme: Scheme) -> bytes:
    return hashlib.new(scheme.hash.value, data).digest()


def tbs_certificate(builder: x509.CertificateBuilder, key_type: KeyType) -> tuple[bytes, bytes]:
    """The DER TBSCertificate of a complete builder, and the AlgorithmIdentifier of its issuer's signatures.

    The builder only builds what it signs, so it signs with a throwaway key of the issuer's kind.
    """
    built = builder.sign(_throwaway(key_type), _HASHES[SCHEMES[key_type].hash])
    _, algorithm, _ = der.children(built.public_bytes(Encoding.DER))
    return built.tbs_certificate_bytes, algorithm


def request_info(
    builder: x509.CertificateSigningRequestBuilder, key_type: KeyType, public_key: bytes
) -> tuple[bytes, bytes]:
    """The DER CertificationRequestInfo (RFC 2986, 4.1) of a builder for this key, and its AlgorithmIdentifier.

    As above; the throwaway's public key gives way to the right one, a DER SubjectPublicKeyInfo.
    """
    built = builder.sign(_throwaway(key_type), _HASHES[SCHEMES[key_type].hash])
    _, algorithm, _ = der.children(built.public_bytes(Encoding.DER))
    version, subject, _, attributes = der.children(built.tbs_certrequest_bytes)
    return der.element(der.SEQUENCE, version + subject + public_key + attributes), algorithm


def certificate(tbs: bytes, algorithm: bytes, signature: bytes) -> bytes:
    """The DER Certificate (RFC 5280, 4.1), or CertificationRequest (RFC 2986, 4.2), of its three parts."""
    return der.element(der.SEQUENCE, tbs + algorithm + der.element(der.BIT_STRING, b"\0" + signature))


async def sign_certificate(builder: x509.CertificateBuilder, key: Key) -> bytes:
    """Have a key sign the certificate of a builder. Raises what the key raises."""
    scheme = SCHEMES[key.key_type]
    tbs, algorithm = tbs_certificate(builder, key.key_type)
    return certificate(tbs, algorithm, await key.sign(digest(tbs, scheme), scheme))


def subject_key_id(public_key: bytes) -> bytes:
    """RFC 5280, 4.2.1.2, method 1: SHA-1 of the key's bits in a DER SubjectPublicKeyInfo."""
    _, bits = der.children(public_key)
    start, end = der.content_of(bits)
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


@lru_cache(maxsize=2)
def _throwaway_of(kind: type) -> ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey:
    if kind is rsa.RSAPrivateKey:
        return rsa.generate_private_key(65537, 2048)
    return ec.generate_private_key(ec.SECP256R1())


def _throwaway(key_type: KeyType) -> ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey:
    # The algorithm's identifier depends on the family and the hash only.
    rsa_family = key_type in (KeyType.RSA_2048, KeyType.RSA_4096)
    return _throwaway_of(rsa.RSAPrivateKey if rsa_family else ec.EllipticCurvePrivateKey)
