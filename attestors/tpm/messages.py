"""What the two halves say to each other: MessagePack maps, the first one the payload, then a response a challenge.

agent   Hello                       which TPM, and which attestation key
server  Activate                    a secret that only this TPM can open, a nonce, the PCRs that are wanted
agent   Proof                       the secret, the quote over the nonce, and TPM2_Certify of the SVID's key
server  Ask                         a part of a log, as long as there is something to be asked for
agent   Part
"""

from __future__ import annotations

from typing import Final, Literal, TypeVar

import msgspec

from operations.errors import InvalidArgument

VERSION: Final = 1
NONCE_SIZE: Final = 32
PART_LIMIT: Final = 1 << 20
"""Bytes of a log in one response."""
HELLO_LIMIT: Final = 256 << 10
PROOF_LIMIT: Final = 64 << 10
CERTIFICATES: Final = 16

Log = Literal["event_log", "ima"]
T = TypeVar("T", bound=msgspec.Struct)


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """`ek_public` and `ak_public` are TPM2B_PUBLIC. Certificates are DER: the EK's own, then those of its NV chain.

    `platform_certificates` are DER attribute certificates (TCG Platform Certificate Profile 1.1).
    """

    version: int = VERSION
    ek_public: bytes
    ak_public: bytes
    ek_certificates: tuple[bytes, ...] = ()
    platform_certificates: tuple[bytes, ...] = ()


class Activate(msgspec.Struct, frozen=True, kw_only=True):
    """`credential` is a TPM2B_ID_OBJECT and `secret` a TPM2B_ENCRYPTED_SECRET (part 3, 12.5).

    Quote and certification are over `nonce`; the quote is of the registers `pcrs` in the bank `bank`.
    """

    credential: bytes
    secret: bytes
    nonce: bytes
    bank: str
    pcrs: tuple[int, ...]


class Certification(msgspec.Struct, frozen=True, kw_only=True):
    """TPM2_Certify of the SVID's key by the attestation key: TPMS_ATTEST, TPMT_SIGNATURE, the key's TPM2B_PUBLIC."""

    statement: bytes
    signature: bytes
    public: bytes


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """`secret` is what the credential hid. `quote` is a TPMS_ATTEST, `signature` a TPMT_SIGNATURE over it.

    `pcrs` are the registers' values at the time of the quote, by number. The logs' sizes, in bytes, were read after
    it: a list that grows still has the quoted state as a prefix. `event_log_hash` is the SHA-256 of the event log,
    empty where the machine has none.
    """

    secret: bytes
    quote: bytes
    signature: bytes
    pcrs: dict[int, bytes]
    certification: Certification | None = None
    event_log_size: int = 0
    event_log_hash: bytes = b""
    ima_size: int = 0


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """At most `size` bytes of a log from `offset` on."""

    log: Log
    offset: int
    size: int


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """Fewer bytes than were asked for are the log's last ones."""

    data: bytes


def encode(message: msgspec.Struct) -> bytes:
    return msgspec.msgpack.encode(message)


def decode(kind: type[T], data: bytes, limit: int) -> T:
    """Raises InvalidArgument for what is no such message, or longer than `limit` bytes."""
    if len(data) > limit:
        raise InvalidArgument(f"{kind.__name__}: {len(data)} bytes, more than the {limit} that it may have")
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        raise InvalidArgument(f"{kind.__name__}: {error}") from error
