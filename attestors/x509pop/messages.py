"""What the two halves of x509pop send each other: JSON documents, byte for byte those of SPIRE's halves.

Bytes are base64. Fields that a reader does not know are passed over; a `null` stands for a part that is not there.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from operations import documents

T = TypeVar("T", bound=msgspec.Struct)


class AttestationData(msgspec.Struct, frozen=True):
    """The agent's payload: its chain, DER, leaf first."""

    certificates: tuple[bytes, ...] = ()


class Nonce(msgspec.Struct, frozen=True):
    nonce: bytes = b""


class Challenge(msgspec.Struct, frozen=True, kw_only=True):
    """The server's nonce, under the kind of the key that is to sign it."""

    rsa_signature: Nonce | None = None
    ecdsa_signature: Nonce | None = None


class RsaSignature(msgspec.Struct, frozen=True):
    """`signature` is RSASSA-PSS (RFC 8017, 8.1) with SHA-256."""

    nonce: bytes = b""
    signature: bytes = b""


class EcdsaSignature(msgspec.Struct, frozen=True):
    """`r` and `s` are big-endian and unsigned, without leading zeroes."""

    nonce: bytes = b""
    r: bytes = b""
    s: bytes = b""


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """The agent's nonce and its signature of both nonces."""

    rsa_signature: RsaSignature | None = None
    ecdsa_signature: EcdsaSignature | None = None


def encode(message: msgspec.Struct) -> bytes:
    return msgspec.json.encode(message)


def decode(kind: type[T], document: bytes) -> T:
    """Raises InvalidArgument."""
    return documents.decode(document, kind)
