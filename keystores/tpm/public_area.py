"""A TPM's public area as bytes (TPMT_PUBLIC; TPM 2.0 Library, part 2, 12.2.4): what a key is, read without a TPM."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from keystores import public_keys
from keystores.errors import InvalidArgument, Unsupported

_RSA, _ECC = 0x0001, 0x0023
_NULL: Final = 0x0010
_AES, _CFB = 0x0006, 0x0043
_HASHES: Final = {0x0004: "sha1", 0x000B: "sha256", 0x000C: "sha384", 0x000D: "sha512"}
_NAME_HASHES: Final = {algorithm: name for algorithm, name in _HASHES.items() if name != "sha1"}
_SCHEMES: Final = {0x0014: "rsassa", 0x0015: "rsaes", 0x0016: "rsapss", 0x0017: "oaep", 0x0018: "ecdsa"}
_ECDAA: Final = 0x001A
_CURVES: Final = {0x0003: ec.SECP256R1, 0x0004: ec.SECP384R1}
_DEFAULT_EXPONENT: Final = 65537
_MAX_RSA_BITS: Final = 4096

ATTRIBUTES: Final = MappingProxyType(
    {
        "fixedTPM": 1 << 1,
        "stClear": 1 << 2,
        "fixedParent": 1 << 4,
        "sensitiveDataOrigin": 1 << 5,
        "userWithAuth": 1 << 6,
        "adminWithPolicy": 1 << 7,
        "noDA": 1 << 10,
        "restricted": 1 << 16,
        "decrypt": 1 << 17,
        "sign": 1 << 18,
    }
)
"""TPMA_OBJECT (part 2, 8.3), as far as keys here are concerned."""

MADE_HERE: Final = frozenset({"fixedTPM", "fixedParent", "sensitiveDataOrigin", "sign"})
"""What a signing key that never was outside of its TPM has set."""
NEVER: Final = frozenset({"restricted", "decrypt", "stClear"})


@dataclass(frozen=True, slots=True)
class Scheme:
    """What a key is bound to use. `hash` is empty for what has none. Schemes that are not known here have hex names."""

    name: str
    hash: str = ""


@dataclass(frozen=True, slots=True)
class PublicArea:
    """`name` is the object's Name: the hash algorithm and the hash of the area. `key` is None for what is no key.

    `name_hash` is that algorithm. `cipher_bits` are those of AES in CFB mode, by which a storage or endorsement key
    protects what is below it; 0 where there is no such cipher. `scheme` is None where the key may use any.
    """

    name: bytes
    attributes: dict[str, bool]
    policy: bytes
    key: public_keys.PublicKey | None
    name_hash: str = "sha256"
    cipher_bits: int = 0
    scheme: Scheme | None = None

    @property
    def der(self) -> bytes:
        """The DER SubjectPublicKeyInfo. Raises Unsupported for what is no EC or RSA key."""
        if self.key is None:
            raise Unsupported("the TPM object is no EC or RSA key")
        return public_keys.to_der(self.key)

    @property
    def faults(self) -> list[str]:
        """What keeps it from being a signing key that was made in its TPM and stays there."""
        missing = [f"{name} is not set" for name in sorted(MADE_HERE) if not self.attributes[name]]
        return missing + [f"{name} is set" for name in sorted(NEVER) if self.attributes[name]]


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def sized(self) -> bytes:
        return self.take(self.number(2))

    def take(self, size: int) -> bytes:
        taken = self._data[self._at : self._at + size]
        if len(taken) != size:
            raise InvalidArgument("the TPM's public area is cut short")
        self._at += size
        return taken

    def cipher(self) -> int:
        """TPMT_SYM_DEF_OBJECT (part 2, 11.1.7): the bits of AES-CFB, 0 for another cipher or none."""
        algorithm = self.number(2)
        if algorithm == _NULL:
            return 0
        bits, mode = self.number(2), self.number(2)
        return bits if (algorithm, mode) == (_AES, _CFB) else 0

    def scheme(self) -> Scheme | None:
        """TPMT_RSA_SCHEME or TPMT_ECC_SCHEME (part 2, 11.2.4.2 and 11.2.5.6)."""
        algorithm = self.number(2)
        if algorithm == _NULL:
            return None
        name = _SCHEMES.get(algorithm, f"{algorithm:#06x}")
        if name == "rsaes":  # TPMS_EMPTY
            return Scheme(name)
        hash_algorithm = self.number(2)
        if algorithm == _ECDAA:
            self.number(2)
        return Scheme(name, _HASHES.get(hash_algorithm, f"{hash_algorithm:#06x}"))

    @property
    def done(self) -> bool:
        return self._at == len(self._data)


def parse(public: bytes) -> PublicArea:
    """The area in a TPM2B_PUBLIC. Raises InvalidArgument for what is none, Unsupported for other hashes and curves."""
    outer = _Reader(public)
    area = outer.sized()
    if not outer.done:
        raise InvalidArgument("bytes follow the TPM's public area")
    reader = _Reader(area)
    kind, name_algorithm, attributes = reader.number(2), reader.number(2), reader.number(4)
    if name_algorithm not in _NAME_HASHES:
        raise Unsupported(f"the TPM object's name algorithm {name_algorithm:#06x} is not supported")
    policy = reader.sized()
    key: public_keys.PublicKey | None = None
    cipher_bits, scheme = 0, None
    if kind in {_RSA, _ECC}:
        cipher_bits, scheme = reader.cipher(), reader.scheme()
        key = _rsa(reader) if kind == _RSA else _ecc(reader)
        if not reader.done:
            raise InvalidArgument("bytes follow the TPM's public key")
    name_hash = _NAME_HASHES[name_algorithm]
    return PublicArea(
        name=struct.pack(">H", name_algorithm) + hashlib.new(name_hash, area).digest(),
        attributes={name: bool(attributes & bit) for name, bit in ATTRIBUTES.items()},
        policy=policy,
        key=key,
        name_hash=name_hash,
        cipher_bits=cipher_bits,
        scheme=scheme,
    )


def _rsa(reader: _Reader) -> rsa.RSAPublicKey:
    bits, exponent, modulus = reader.number(2), reader.number(4), reader.sized()
    if len(modulus) * 8 != bits:
        raise InvalidArgument("the TPM's RSA key is not as long as it says")
    if bits > _MAX_RSA_BITS:
        raise Unsupported(f"the TPM's RSA key has {bits} bits, more than {_MAX_RSA_BITS}")
    try:
        return rsa.RSAPublicNumbers(exponent or _DEFAULT_EXPONENT, int.from_bytes(modulus)).public_key()
    except ValueError as error:
        raise InvalidArgument("the TPM's RSA key is none") from error


def _ecc(reader: _Reader) -> ec.EllipticCurvePublicKey:
    curve = reader.number(2)
    if reader.number(2) != _NULL:  # the scheme of a key derivation, with its hash
        reader.number(2)
    x, y = int.from_bytes(reader.sized()), int.from_bytes(reader.sized())
    if curve not in _CURVES:
        raise Unsupported(f"the TPM key's curve {curve:#06x} is neither P-256 nor P-384")
    try:
        return ec.EllipticCurvePublicNumbers(x, y, _CURVES[curve]()).public_key()
    except ValueError as error:
        raise InvalidArgument("the TPM's EC key is no point of its curve") from error
