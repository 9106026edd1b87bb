"""What the two halves of sshpop send each other: JSON documents, byte for byte those of SPIRE's halves.

Bytes are base64, or `null` where there are none. Fields that a reader does not know are passed over.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from operations import documents

T = TypeVar("T", bound=msgspec.Struct)


class AttestationData(msgspec.Struct, frozen=True, rename="pascal"):
    """The agent's payload: its certificate, as SSH writes it."""

    certificate: bytes | None = None


class Challenge(msgspec.Struct, frozen=True, rename="pascal"):
    """The server's nonce."""

    nonce: bytes | None = None


class Signature(msgspec.Struct, frozen=True, rename="pascal"):
    """`format` is the algorithm's name; `rest` what a security key adds."""

    format: str = ""
    blob: bytes | None = None
    rest: bytes | None = None


class Response(msgspec.Struct, frozen=True, rename="pascal"):
    """The agent's nonce and its signature of both nonces."""

    nonce: bytes | None = None
    signature: Signature | None = None


def encode(message: msgspec.Struct) -> bytes:
    return msgspec.json.encode(message)


def decode(kind: type[T], document: bytes) -> T:
    """Raises InvalidArgument."""
    return documents.decode(document, kind)
