"""Between PKCS#11's notations and the DER that everybody else speaks."""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from keystores import public_keys
from keystores.errors import PermanentlyUnusable, Unsupported
from keystores.pkcs11.protocol import Mechanism, PublicParts
from plugins.keymanager import Hash, KeyType, Scheme

COORDINATE_SIZE = {KeyType.EC_P256: 32, KeyType.EC_P384: 48}
"""Bytes of a coordinate, and of r and s."""

EC_PARAMETERS = {
    KeyType.EC_P256: bytes.fromhex("06082a8648ce3d030107"),
    KeyType.EC_P384: bytes.fromhex("06052b81040022"),
}
"""CKA_EC_PARAMS: the DER OIDs prime256v1 and secp384r1 (RFC 5480, 2.1.1.1)."""

_DIGEST_INFO = {
    Hash.SHA256: bytes.fromhex("3031300d060960864801650304020105000420"),
    Hash.SHA384: bytes.fromhex("3041300d060960864801650304020205000430"),
    Hash.SHA512: bytes.fromhex("3051300d060960864801650304020305000440"),
}
"""What precedes the digest in a DER DigestInfo (RFC 8017, 9.2, note 1)."""


ED25519_PARAMETERS = frozenset({bytes.fromhex("06032b6570"), bytes.fromhex("130c656477617264733235353139")})
"""CKA_EC_PARAMS of Ed25519 keys: the OID (RFC 8410), or the PrintableString edwards25519 (PKCS#11 3.0, 2.3.10)."""

_ED25519_SIZE = 32
_PSS = {Hash.SHA256: Mechanism.PSS_SHA256, Hash.SHA384: Mechanism.PSS_SHA384, Hash.SHA512: Mechanism.PSS_SHA512}


def signing(key_type: KeyType, digests: Sequence[bytes], scheme: Scheme) -> tuple[Mechanism, list[bytes]]:
    """How a token signs digests, and what it is given."""
    if key_type in COORDINATE_SIZE:
        return Mechanism.ECDSA, [ecdsa_input(digest, key_type) for digest in digests]
    if scheme.pss:
        return _PSS[scheme.hash], list(digests)
    return Mechanism.PKCS1, [digest_info(digest, scheme.hash) for digest in digests]


def digest_info(digest: bytes, hash_: Hash) -> bytes:
    """What CKM_RSA_PKCS pads and signs."""
    return _DIGEST_INFO[hash_] + digest


def ecdsa_input(digest: bytes, key_type: KeyType) -> bytes:
    """The leftmost bits of the digest, as many as the group's order has (FIPS 186-5, 6.4.1): not every token cuts."""
    return digest[: COORDINATE_SIZE[key_type]]


def ecdsa_signature(signature: bytes, key_type: KeyType) -> bytes:
    """DER Ecdsa-Sig-Value from the fixed-width r‖s of PKCS#11, or from the DER that some tokens give.

    Raises PermanentlyUnusable for neither.
    """
    size = COORDINATE_SIZE[key_type]
    if len(signature) == 2 * size:
        return encode_dss_signature(int.from_bytes(signature[:size], "big"), int.from_bytes(signature[size:], "big"))
    try:
        return encode_dss_signature(*decode_dss_signature(signature))
    except ValueError as error:
        raise PermanentlyUnusable(
            f"the token returned an ECDSA signature of {len(signature)} bytes that is neither r‖s nor DER"
        ) from error


def ec_point(value: bytes, key_type: KeyType) -> bytes:
    """The uncompressed point in CKA_EC_POINT: raw, in a DER OCTET STRING, or in a BIT STRING.

    The length tells which; trying DER first would misread a raw point, which begins with 0x04 as an OCTET STRING does.
    """
    raw = 2 * COORDINATE_SIZE[key_type] + 1
    short = raw < 0x80  # Both curves' lengths fit in one byte of DER.
    if not short:
        raise Unsupported(f"points of {key_type.value} are not supported")
    return _unwrapped(value, raw, key_type.value)


def _unwrapped(value: bytes, raw: int, what: str) -> bytes:
    if len(value) == raw:
        return value
    if len(value) == raw + 2 and value[:2] == bytes((0x04, raw)):
        return value[2:]
    if len(value) == raw + 3 and value[:3] == bytes((0x03, raw + 1, 0)):
        return value[3:]
    raise PermanentlyUnusable(f"the token's CKA_EC_POINT of {len(value)} bytes is no point of {what}")


def public_key(parts: PublicParts) -> bytes | None:
    """DER SubjectPublicKeyInfo of a public key object; None for an algorithm that is not known here."""
    if parts.modulus is not None and parts.exponent is not None:
        return rsa_public_key(parts.modulus, parts.exponent)
    point = parts.ec_point or b""
    if parts.ec_parameters in ED25519_PARAMETERS:
        return ed25519_public_key(point)
    for key_type, parameters in EC_PARAMETERS.items():
        if parts.ec_parameters == parameters:
            return ec_public_key(point, key_type)
    return None


def ed25519_public_key(value: bytes) -> bytes:
    """DER SubjectPublicKeyInfo of a CKA_EC_POINT in any of its three forms. Raises PermanentlyUnusable."""
    key = ed25519.Ed25519PublicKey.from_public_bytes(_unwrapped(value, _ED25519_SIZE, "Ed25519"))
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def ec_public_key(point: bytes, key_type: KeyType) -> bytes:
    """DER SubjectPublicKeyInfo of a CKA_EC_POINT. Raises PermanentlyUnusable for a point off the curve."""
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(public_keys.CURVES[key_type](), ec_point(point, key_type))
    except ValueError as error:
        raise PermanentlyUnusable(f"the token's CKA_EC_POINT is not on {key_type.value}") from error
    return public_keys.to_der(key)


def rsa_public_key(modulus: bytes, exponent: bytes) -> bytes:
    """DER SubjectPublicKeyInfo of CKA_MODULUS and CKA_PUBLIC_EXPONENT (big-endian)."""
    numbers = rsa.RSAPublicNumbers(int.from_bytes(exponent, "big"), int.from_bytes(modulus, "big"))
    try:
        return public_keys.to_der(numbers.public_key())
    except ValueError as error:
        raise PermanentlyUnusable("the token's CKA_MODULUS and CKA_PUBLIC_EXPONENT are no RSA key") from error
