"""What the process at the TPM is asked, and what it answers: MessagePack, one request and one answer.

An attestation takes two steps, and between them nothing is in the TPM: its objects travel as saved contexts, which
only this TPM can load, and only until it is reset.
"""

from __future__ import annotations

import msgspec

LIMIT = 1 << 20
"""Bytes of a request or an answer."""


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """How to connect (see devices.connection), and the authorizations of the DevID's key and of two hierarchies."""

    tcti: str
    devid_auth: bytes = b""
    owner_auth: bytes = b""
    endorsement_auth: bytes = b""


class Begin(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The DevID's key, TPMT_PUBLIC and TPM2B_PRIVATE's buffer."""

    access: Access
    public: bytes
    private: bytes


class Begun(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Public areas are TPMT_PUBLIC. `statement` and `signature` are of TPM2_Certify. The contexts are marshalled."""

    ek_certificate: bytes
    ek_public: bytes
    ak_public: bytes
    statement: bytes
    signature: bytes
    devid: bytes
    ak: bytes
    ek: bytes


class Respond(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """`begun` is the answer to the first step; `credential` and `secret` come without the bytes of their sizes."""

    access: Access
    begun: Begun
    hash: str
    nonce: bytes
    credential: bytes
    secret: bytes


class Responded(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """PKCS #1 v1.5, or a DER Ecdsa-Sig-Value; and what the credential hid."""

    signature: bytes
    secret: bytes


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """`kind` names a class of keystores.errors; `code` is the TSS2_RC, 0 where there is none."""

    kind: str
    message: str
    code: int = 0


Request = Begin | Respond
Answer = Begun | Responded | Failed

_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_answers: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def encode(message: Request | Answer) -> bytes:
    return msgspec.msgpack.encode(message)


def request(data: bytes) -> Request:
    return _requests.decode(data)


def answer(data: bytes) -> Answer:
    """Raises msgspec.MsgspecError."""
    return _answers.decode(data)
