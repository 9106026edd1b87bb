"""Certificate signing requests (RFC 2986), with the key wherever it is.

The DER is put together here, because the builders of the libraries want the private key in memory, and an agent's
key may live in a token or a TPM.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from plugins.keymanager import Hash, Key, KeyType, Scheme

_SEQUENCE, _SET, _INTEGER, _BIT_STRING, _OCTET_STRING = 0x30, 0x31, 0x02, 0x03, 0x04
_PRINTABLE_STRING, _CONTEXT_0, _URI_NAME = 0x13, 0xA0, 0x86

# Object identifiers, whole (tag and length included).
_COUNTRY = bytes.fromhex("0603550406")
_ORGANIZATION = bytes.fromhex("060355040a")
_SUBJECT_ALT_NAME = bytes.fromhex("0603551d11")
_EXTENSION_REQUEST = bytes.fromhex("06092a864886f70d01090e")  # RFC 2985, 5.4.2


def _tlv(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(octets))) + octets + content


def _attribute(kind: bytes, value: str) -> bytes:
    return _tlv(_SET, _tlv(_SEQUENCE, kind, _tlv(_PRINTABLE_STRING, value.encode("ascii"))))


_SUBJECT = _tlv(_SEQUENCE, _attribute(_COUNTRY, "US"), _attribute(_ORGANIZATION, "SPIRE"))


@dataclass(frozen=True, slots=True)
class _Signing:
    algorithm: bytes  # AlgorithmIdentifier, DER
    hash: Hash


_ECDSA_SHA256 = _Signing(bytes.fromhex("300a06082a8648ce3d040302"), Hash.SHA256)
_ECDSA_SHA384 = _Signing(bytes.fromhex("300a06082a8648ce3d040303"), Hash.SHA384)
_RSA_SHA256 = _Signing(bytes.fromhex("300d06092a864886f70d01010b0500"), Hash.SHA256)

_SIGNING = {
    KeyType.EC_P256: _ECDSA_SHA256,
    KeyType.EC_P384: _ECDSA_SHA384,
    KeyType.RSA_2048: _RSA_SHA256,
    KeyType.RSA_4096: _RSA_SHA256,
}


def _request_info(public_key: bytes, uri: str | None) -> bytes:
    """CertificationRequestInfo for a DER SubjectPublicKeyInfo; `uri` becomes the one subject alternative name."""
    attributes = b""
    if uri is not None:
        names = _tlv(_SEQUENCE, _tlv(_URI_NAME, uri.encode("ascii")))
        extension = _tlv(_SEQUENCE, _SUBJECT_ALT_NAME, _tlv(_OCTET_STRING, names))
        attributes = _tlv(_SEQUENCE, _EXTENSION_REQUEST, _tlv(_SET, _tlv(_SEQUENCE, extension)))
    return _tlv(_SEQUENCE, _tlv(_INTEGER, b"\0"), _SUBJECT, public_key, _tlv(_CONTEXT_0, attributes))


def _assemble(info: bytes, algorithm: bytes, signature: bytes) -> bytes:
    return _tlv(_SEQUENCE, info, algorithm, _tlv(_BIT_STRING, b"\0", signature))


async def agent_request(key: Key) -> bytes:
    """The DER request for an agent's SVID. It names no SPIFFE ID: the server derives it from the attestation."""
    signing = _SIGNING[key.key_type]
    info = _request_info(key.public_key, None)
    digest = hashlib.new(signing.hash.value, info).digest()
    return _assemble(info, signing.algorithm, await key.sign(digest, Scheme(signing.hash)))


@dataclass(frozen=True, slots=True)
class WorkloadKey:
    """A fresh private key (PKCS #8 DER), its public key (SubjectPublicKeyInfo DER) and the request (DER) for both."""

    private_key: bytes
    public_key: bytes
    request: bytes


def workload_request(key_type: KeyType, spiffe_id: str) -> WorkloadKey:
    """Make a key pair and the request for `spiffe_id`. Works the processor: call it in a worker."""
    signing = _SIGNING[key_type]
    key = _generate(key_type)
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    info = _request_info(public, spiffe_id)
    algorithm = hashes.SHA384() if signing.hash is Hash.SHA384 else hashes.SHA256()
    if isinstance(key, rsa.RSAPrivateKey):
        signature = key.sign(info, padding.PKCS1v15(), algorithm)
    else:
        signature = key.sign(info, ec.ECDSA(algorithm))
    private = key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return WorkloadKey(private, public, _assemble(info, signing.algorithm, signature))


def _generate(key_type: KeyType) -> ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey:
    match key_type:
        case KeyType.EC_P256:
            return ec.generate_private_key(ec.SECP256R1())
        case KeyType.EC_P384:
            return ec.generate_private_key(ec.SECP384R1())
        case KeyType.RSA_2048:
            return rsa.generate_private_key(65537, 2048)
        case KeyType.RSA_4096:
            return rsa.generate_private_key(65537, 4096)
