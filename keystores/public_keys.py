"""Public keys as key stores see them: their type, the digests they take, and whether a signature is theirs."""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from keystores.errors import InvalidArgument, PermanentlyUnusable, Unsupported
from plugins.keymanager import Hash, KeyType, Scheme

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

CURVES: dict[KeyType, type[ec.EllipticCurve]] = {KeyType.EC_P256: ec.SECP256R1, KeyType.EC_P384: ec.SECP384R1}
MODULUS_BITS = {KeyType.RSA_2048: 2048, KeyType.RSA_4096: 4096}

_HASHES: dict[Hash, hashes.HashAlgorithm] = {
    Hash.SHA256: hashes.SHA256(),
    Hash.SHA384: hashes.SHA384(),
    Hash.SHA512: hashes.SHA512(),
}
_PREHASHED = {name: Prehashed(algorithm) for name, algorithm in _HASHES.items()}
_ECDSA = {name: ec.ECDSA(prehashed) for name, prehashed in _PREHASHED.items()}


def key_type_of(key: object) -> KeyType:
    """The type of a public or private key of `cryptography`. Raises Unsupported."""
    for key_type, curve in CURVES.items():
        if isinstance(key, ec.EllipticCurvePublicKey | ec.EllipticCurvePrivateKey) and isinstance(key.curve, curve):
            return key_type
    for key_type, bits in MODULUS_BITS.items():
        if isinstance(key, rsa.RSAPublicKey | rsa.RSAPrivateKey) and key.key_size == bits:
            return key_type
    known = ", ".join(key_type.value for key_type in KeyType)
    raise Unsupported(f"the key is of none of the types {known}")


def to_der(key: PublicKey) -> bytes:
    """The DER SubjectPublicKeyInfo."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def from_der(der: bytes) -> PublicKey:
    """The key of a DER SubjectPublicKeyInfo. Raises Unsupported for other algorithms, InvalidArgument for no DER."""
    try:
        key = serialization.load_der_public_key(der)
    except ValueError as error:
        raise InvalidArgument("this is no DER SubjectPublicKeyInfo") from error
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise Unsupported("the key is neither EC nor RSA")
    return key


def check_digests(digests: Sequence[bytes], scheme: Scheme) -> None:
    """Raises InvalidArgument unless every digest is as long as the scheme's hash."""
    size = _HASHES[scheme.hash].digest_size
    for digest in digests:
        if len(digest) != size:
            raise InvalidArgument(f"a {scheme.hash.value} digest has {size} bytes, this one has {len(digest)}")


def rsa_padding(scheme: Scheme) -> padding.AsymmetricPadding:
    if scheme.pss:
        return padding.PSS(padding.MGF1(_HASHES[scheme.hash]), padding.PSS.DIGEST_LENGTH)
    return padding.PKCS1v15()


def prehashed(scheme: Scheme) -> Prehashed:
    return _PREHASHED[scheme.hash]


def ecdsa(scheme: Scheme) -> ec.ECDSA:
    return _ECDSA[scheme.hash]


def verify(key: PublicKey, digests: Sequence[bytes], signatures: Sequence[bytes], scheme: Scheme) -> None:
    """Raises PermanentlyUnusable unless each signature is the key's over its digest: a device that lies is unfit."""
    if len(digests) != len(signatures):
        raise PermanentlyUnusable(f"the device gave {len(signatures)} signatures for {len(digests)} digests")
    try:
        if isinstance(key, rsa.RSAPublicKey):
            pad, algorithm = rsa_padding(scheme), prehashed(scheme)
            for digest, signature in zip(digests, signatures, strict=True):
                key.verify(signature, digest, pad, algorithm)
        else:
            signing = ecdsa(scheme)
            for digest, signature in zip(digests, signatures, strict=True):
                key.verify(signature, digest, signing)
    except InvalidSignature as error:
        raise PermanentlyUnusable("the device returned a signature that does not verify; it was not used") from error
