"""What a TPM states, as bytes: TPMS_ATTEST of quotes and certifications, and TPMT_SIGNATURE over them.

Read without a TPM (TPM 2.0 Library, part 2, 10.12 and 11.3). Nothing here says whose the signing key is.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from keystores.errors import InvalidArgument, Refused
from keystores.public_keys import PublicKey

LIMIT: Final = 4096
"""Bytes of a statement or a signature; those of a TPM are far smaller."""
STRONG: Final = frozenset({"sha256", "sha384", "sha512"})

_MAGIC: Final = 0xFF544347
_CERTIFY: Final = 0x8017
_QUOTE: Final = 0x8018
_HASHES: Final = MappingProxyType({0x0004: "sha1", 0x000B: "sha256", 0x000C: "sha384", 0x000D: "sha512"})
_ALGORITHMS: Final[MappingProxyType[str, hashes.HashAlgorithm]] = MappingProxyType(
    {
        "sha1": hashes.SHA1(),  # noqa: S303 - refused unless a caller asks for it
        "sha256": hashes.SHA256(),
        "sha384": hashes.SHA384(),
        "sha512": hashes.SHA512(),
    }
)
_RSASSA, _RSAPSS, _ECDSA = 0x0014, 0x0016, 0x0018
_MAX_SELECTION: Final = 4
"""Bytes of a bitmap of registers; TPMs have 24 registers, in 3 bytes."""


@dataclass(frozen=True, slots=True)
class Quoted:
    """TPMS_QUOTE_INFO: the registers by bank, in the statement's order, and the digest of their values."""

    selection: tuple[tuple[str, tuple[int, ...]], ...]
    digest: bytes


@dataclass(frozen=True, slots=True)
class Certified:
    """TPMS_CERTIFY_INFO: the Name of what is certified."""

    name: bytes
    qualified_name: bytes


@dataclass(frozen=True, slots=True)
class Statement:
    """A TPMS_ATTEST. `extra` is what its caller gave, a nonce. `clock` is in ms, counters as the TPM has them.

    Of keys that are not in the endorsement or platform hierarchy, a TPM obscures both counters and the firmware
    version by adding constants (part 1, 36.7).
    """

    signer: bytes
    extra: bytes
    clock: int
    reset_count: int
    restart_count: int
    safe: bool
    firmware: int
    attested: Quoted | Certified


@dataclass(frozen=True, slots=True)
class Signature:
    """A TPMT_SIGNATURE: `scheme` is rsassa, rsapss or ecdsa; `value` is DER Ecdsa-Sig-Value for the last."""

    scheme: str
    hash: str
    value: bytes


class _Reader:
    def __init__(self, data: bytes, what: str) -> None:
        if len(data) > LIMIT:
            raise InvalidArgument(f"the TPM's {what} has {len(data)} bytes, more than any TPM makes")
        self._data = data
        self._at = 0
        self._what = what

    def take(self, size: int) -> bytes:
        taken = self._data[self._at : self._at + size]
        if len(taken) != size:
            raise InvalidArgument(f"the TPM's {self._what} is cut short")
        self._at += size
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def sized(self) -> bytes:
        return self.take(self.number(2))

    def hash(self) -> str:
        algorithm = self.number(2)
        if algorithm not in _HASHES:
            raise InvalidArgument(f"the TPM's {self._what} has the unknown hash algorithm {algorithm:#06x}")
        return _HASHES[algorithm]

    def end(self) -> None:
        if self._at != len(self._data):
            raise InvalidArgument(f"bytes follow the TPM's {self._what}")


def parse(statement: bytes) -> Statement:
    """Read a TPMS_ATTEST of a quote or a certification. Raises InvalidArgument."""
    reader = _Reader(statement, "statement")
    if reader.number(4) != _MAGIC:
        raise InvalidArgument("this is no statement that a TPM made: it does not begin with TPM_GENERATED")
    kind = reader.number(2)
    if kind not in {_CERTIFY, _QUOTE}:
        raise InvalidArgument(f"the TPM's statement is of type {kind:#06x}, neither a quote nor a certification")
    signer, extra = reader.sized(), reader.sized()
    clock, reset_count, restart_count, safe = struct.unpack(">QIIB", reader.take(17))
    if safe not in {0, 1}:
        raise InvalidArgument("the TPM's statement says neither yes nor no of its clock")
    firmware = reader.number(8)
    attested = _quoted(reader) if kind == _QUOTE else Certified(reader.sized(), reader.sized())
    reader.end()
    return Statement(signer, extra, clock, reset_count, restart_count, bool(safe), firmware, attested)


def _quoted(reader: _Reader) -> Quoted:
    count = reader.number(4)
    if count > len(_HASHES):
        raise InvalidArgument(f"the TPM's statement selects registers of {count} banks")
    selection: list[tuple[str, tuple[int, ...]]] = []
    for _ in range(count):
        bank, size = reader.hash(), reader.number(1)
        if size > _MAX_SELECTION:
            raise InvalidArgument("the TPM's statement selects registers that no TPM has")
        bits = int.from_bytes(reader.take(size), "little")
        selection.append((bank, tuple(number for number in range(size * 8) if bits >> number & 1)))
    return Quoted(tuple(selection), reader.sized())


def parse_signature(signature: bytes) -> Signature:
    """Read a TPMT_SIGNATURE. Raises InvalidArgument."""
    reader = _Reader(signature, "signature")
    algorithm = reader.number(2)
    if algorithm not in {_RSASSA, _RSAPSS, _ECDSA}:
        raise InvalidArgument(f"the TPM's signature is of the unknown algorithm {algorithm:#06x}")
    name = reader.hash()
    if algorithm == _ECDSA:
        r, s = int.from_bytes(reader.sized()), int.from_bytes(reader.sized())
        reader.end()
        return Signature("ecdsa", name, encode_dss_signature(r, s))
    value = reader.sized()
    reader.end()
    return Signature("rsassa" if algorithm == _RSASSA else "rsapss", name, value)


def verify(key: PublicKey, statement: bytes, signature: Signature, allowed: frozenset[str] = STRONG) -> None:
    """Raises Refused unless the signature is the key's over the statement, by one of the allowed hashes."""
    if signature.hash not in allowed:
        raise Refused(f"the TPM signed with {signature.hash}; attestation keys use {', '.join(sorted(allowed))}")
    algorithm = _ALGORITHMS[signature.hash]
    try:
        if isinstance(key, rsa.RSAPublicKey) and signature.scheme == "rsassa":
            key.verify(signature.value, statement, padding.PKCS1v15(), algorithm)
        elif isinstance(key, rsa.RSAPublicKey) and signature.scheme == "rsapss":
            # Libraries up to revision 1.38 use the longest salt that fits, later ones that of the hash's length.
            key.verify(signature.value, statement, padding.PSS(padding.MGF1(algorithm), padding.PSS.AUTO), algorithm)
        elif isinstance(key, ec.EllipticCurvePublicKey) and signature.scheme == "ecdsa":
            key.verify(signature.value, statement, ec.ECDSA(algorithm))
        else:
            raise Refused(f"the TPM's signature is by {signature.scheme}, which is not of the attestation key's kind")
    except InvalidSignature as error:
        raise Refused("the signature over the TPM's statement is not the attestation key's") from error
