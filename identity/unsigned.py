"""Certificates and requests whose signature comes from elsewhere: a token, a TPM, a key manager.

cryptography's builders build only what they sign, so they sign with a throwaway key of the right kind; what was to be
signed is taken out of the result, and put together with the real signature.
"""

from __future__ import annotations

import enum
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from identity import asn1


class Algorithm(enum.Enum):
    """How an issuer signs. RSA is PKCS #1 v1.5."""

    ECDSA_SHA256 = enum.auto()
    ECDSA_SHA384 = enum.auto()
    RSA_SHA256 = enum.auto()
    ED25519 = enum.auto()


_HASHES = {
    Algorithm.ECDSA_SHA256: hashes.SHA256(),
    Algorithm.ECDSA_SHA384: hashes.SHA384(),
    Algorithm.RSA_SHA256: hashes.SHA256(),
    Algorithm.ED25519: None,
}


def certificate(builder: x509.CertificateBuilder, algorithm: Algorithm) -> tuple[bytes, bytes]:
    """The DER TBSCertificate of a complete builder, and the AlgorithmIdentifier of its issuer's signatures.

    Raises ValueError for what cannot stand in a certificate.
    """
    built = builder.sign(_throwaway(algorithm), _HASHES[algorithm])
    return built.tbs_certificate_bytes, _identifier(built.public_bytes(Encoding.DER))


def request(
    builder: x509.CertificateSigningRequestBuilder, algorithm: Algorithm, public_key: bytes
) -> tuple[bytes, bytes]:
    """The DER CertificationRequestInfo (RFC 2986, 4.1) of a builder for this key, and its AlgorithmIdentifier.

    As above; the throwaway's public key gives way to the right one, a DER SubjectPublicKeyInfo.
    """
    built = builder.sign(_throwaway(algorithm), _HASHES[algorithm])
    version, subject, _, attributes = asn1.children(built.tbs_certrequest_bytes)
    info = asn1.element(asn1.SEQUENCE, version + subject + public_key + attributes)
    return info, _identifier(built.public_bytes(Encoding.DER))


def signed(unsigned: bytes, identifier: bytes, signature: bytes) -> bytes:
    """The DER Certificate (RFC 5280, 4.1), or CertificationRequest (RFC 2986, 4.2), of its three parts."""
    return asn1.element(asn1.SEQUENCE, unsigned + identifier + asn1.element(asn1.BIT_STRING, b"\0" + signature))


def _identifier(encoded: bytes) -> bytes:
    _, identifier, _ = asn1.children(encoded)
    return identifier


@lru_cache(maxsize=4)
def _throwaway(algorithm: Algorithm) -> ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey:
    # An AlgorithmIdentifier says nothing of an EC key's curve, nor of an RSA key's size.
    if algorithm is Algorithm.ED25519:
        return ed25519.Ed25519PrivateKey.generate()
    if algorithm is Algorithm.RSA_SHA256:
        return rsa.generate_private_key(65537, 2048)
    return ec.generate_private_key(ec.SECP256R1())
