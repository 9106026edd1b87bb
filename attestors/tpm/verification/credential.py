"""TPM2_MakeCredential without a TPM: a secret that only the TPM which holds both keys can open.

TPM 2.0 Library, part 1: 24 (credential protection), 11.4.10 (key derivation), B.10.4 and C.6.1 (secret sharing).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Final

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from keystores.tpm.public_area import PublicArea
from operations.errors import InvalidArgument, Refused

_HASHES: Final[dict[str, hashes.HashAlgorithm]] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}
_IDENTITY: Final = b"IDENTITY\0"
_CIPHER_BITS: Final = (128, 192, 256)


def make(ek: PublicArea, name: bytes, secret: bytes) -> tuple[bytes, bytes]:
    """A TPM2B_ID_OBJECT and a TPM2B_ENCRYPTED_SECRET that TPM2_ActivateCredential turns into the secret.

    It does so for the object with this Name in the TPM of the endorsement key. Raises InvalidArgument for a secret
    longer than the key's name hash, Refused for a key to which nothing can be encrypted.
    """
    size = hashlib.new(ek.name_hash).digest_size
    if not 0 < len(secret) <= size:
        raise InvalidArgument(f"a credential has 1 to {size} bytes, not {len(secret)}")
    if ek.cipher_bits not in _CIPHER_BITS:
        raise Refused("the endorsement key protects nothing by AES in CFB mode, as a credential needs it")
    seed, encrypted_seed = _share_seed(ek, size)
    cipher_key = _kdfa(ek.name_hash, seed, b"STORAGE", name, b"", ek.cipher_bits)
    encryptor = Cipher(algorithms.AES(cipher_key), CFB(bytes(16))).encryptor()
    identity = encryptor.update(_sized(secret)) + encryptor.finalize()
    integrity_key = _kdfa(ek.name_hash, seed, b"INTEGRITY", b"", b"", size * 8)
    integrity = hmac.digest(integrity_key, identity + name, ek.name_hash)
    return _sized(_sized(integrity) + identity), _sized(encrypted_seed)


def _share_seed(ek: PublicArea, size: int) -> tuple[bytes, bytes]:
    """A seed, and that for the key's TPM only: by OAEP, or by a key agreement with an ephemeral point."""
    if isinstance(ek.key, rsa.RSAPublicKey):
        seed = secrets.token_bytes(size)
        algorithm = _HASHES[ek.name_hash]
        return seed, ek.key.encrypt(seed, padding.OAEP(padding.MGF1(algorithm), algorithm, _IDENTITY))
    if isinstance(ek.key, ec.EllipticCurvePublicKey):
        ephemeral = ec.generate_private_key(ek.key.curve)
        z = ephemeral.exchange(ec.ECDH(), ek.key)
        length = len(z)
        point, static = ephemeral.public_key().public_numbers(), ek.key.public_numbers()
        x, y = point.x.to_bytes(length), point.y.to_bytes(length)
        seed = _kdfe(ek.name_hash, z, x, static.x.to_bytes(length), size * 8)
        return seed, _sized(x) + _sized(y)
    raise Refused("the endorsement key is no EC or RSA key")


def _kdfa(name: str, key: bytes, label: bytes, u: bytes, v: bytes, bits: int) -> bytes:
    """SP 800-108 in counter mode with HMAC (11.4.10.2). `label` is without its zero."""
    size = hashlib.new(name).digest_size
    made = b""
    for counter in range(1, -(-bits // 8 // size) + 1):
        made += hmac.digest(key, counter.to_bytes(4) + label + b"\0" + u + v + bits.to_bytes(4), name)
    return made[: bits // 8]


def _kdfe(name: str, z: bytes, u: bytes, v: bytes, bits: int) -> bytes:
    """SP 800-56A's concatenation with the label IDENTITY (11.4.10.3); `bits` are those of the hash."""
    return hashlib.new(name, (1).to_bytes(4) + z + _IDENTITY + u + v).digest()[: bits // 8]


def _sized(content: bytes) -> bytes:
    return len(content).to_bytes(2) + content
