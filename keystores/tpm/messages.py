"""What the key manager and the TPM's worker process say to each other: one frame each, msgpack behind its length.

Authorization values travel here, between two processes of one program, and nowhere else.
"""

from __future__ import annotations

import struct
from typing import Literal

import msgspec

FRAME_LIMIT = 4 << 20
"""Bytes of one frame."""
LENGTH = struct.Struct(">I")


class Place(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Where keys are made and loaded. Gets no answer.

    `parent` is a persistent handle, TPM_RH_OWNER for the primary key of TSS2 key files, or None for the SRK.
    `source` and `name` (a TPM Name) are what an earlier run found there, and what must be there again. A busy TPM
    is given `busy` seconds.
    """

    tcti: str
    parent: int | None = None
    owner_auth: bytes = b""
    parent_auth: bytes = b""
    source: str = ""
    name: bytes = b""
    busy: float = 5.0


class Blob(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A wrapped key: TPM2B_PUBLIC and TPM2B_PRIVATE. `pcrs` is the selection that its policy names."""

    public: bytes
    private: bytes
    pcrs: str | None = None
    auth: bytes = b""


class Persistent(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A key at a persistent handle."""

    handle: int
    auth: bytes = b""


LoadedKey = Blob | Persistent


class Probe(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Find the parent, and say which TPM it is."""


class Create(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Make a signing key, by a KeyType's value."""

    key_type: str
    pcrs: str | None = None


class Describe(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Load the key and read its public area back."""

    key: LoadedKey


class Sign(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Sign digests of one hash, which the TPM is to know them by."""

    key: LoadedKey
    digests: list[bytes]
    scheme: Literal["ecdsa", "rsassa", "rsapss"]
    hash: str


class Certify(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Have an attestation key, made for this, certify the key over the nonce."""

    key: Blob
    nonce: bytes


class Seal(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Seal as many random bytes of the TPM."""

    size: int
    pcrs: str | None = None


class Unseal(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    blob: Blob


class Endorse(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Find the endorsement key, and make an attestation key below it unless `key` is one.

    `template` names the endorsement key's of an earlier run; empty to choose one of the algorithm. `auth` is that of
    the endorsement hierarchy.
    """

    algorithm: Literal["auto", "rsa", "ecc"] = "auto"
    template: str = ""
    auth: bytes = b""
    key: Blob | None = None


class Attest(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Have the attestation key `key` quote registers over the nonce.

    `credential` (TPM2B_ID_OBJECT) and `secret` (TPM2B_ENCRYPTED_SECRET) are to be opened by the endorsement key, unless
    they are empty. The subject is certified over the same nonce.
    """

    template: str
    auth: bytes = b""
    key: Blob
    nonce: bytes
    bank: str
    pcrs: tuple[int, ...]
    credential: bytes = b""
    secret: bytes = b""
    subject: Blob | None = None


Request = Place | Probe | Create | Describe | Sign | Certify | Seal | Unseal | Endorse | Attest


class Probed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Where the parent was found and its Name; the TPM's manufacturer and firmware, for people."""

    source: str
    name: bytes
    tpm: str


class Wrapped(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What was made: TPM2B_PUBLIC and TPM2B_PRIVATE."""

    public: bytes
    private: bytes


class Described(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The TPM2B_PUBLIC as the TPM has it, and the key's Name."""

    public: bytes
    name: bytes


class Signed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """DER Ecdsa-Sig-Values, or raw RSA signatures."""

    signatures: list[bytes]


class Certified(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """TPMS_ATTEST, the DER Ecdsa-Sig-Value over it, and the attestation key's TPM2B_PUBLIC."""

    statement: bytes
    signature: bytes
    signer: bytes


class Unsealed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    data: bytes


class Endorsed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The endorsement key's template by name, its TPM2B_PUBLIC, its certificate and those above it as DER; the
    attestation key."""

    template: str
    public: bytes
    certificates: list[bytes]
    key: Wrapped


class StatedKey(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """TPMS_ATTEST of TPM2_Certify, and the attestation key's TPMT_SIGNATURE."""

    statement: bytes
    signature: bytes


class Attested(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What the credential hid, the quote (TPMS_ATTEST), its TPMT_SIGNATURE, and the registers that it is about."""

    secret: bytes
    quote: bytes
    signature: bytes
    pcrs: dict[int, bytes]
    certified: StatedKey | None = None


class Beat(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The TPM has answered meanwhile; the request goes on."""


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """`kind` names a class of keystores.errors; `code` is the TSS2_RC, 0 where there is none.

    `away` says that the device was not reached, so that others need not ask it at once; `authorization` that it is
    wrong, and is not to be tried again.
    """

    kind: str
    message: str
    code: int = 0
    reason: str = ""
    away: bool = False
    authorization: bool = False


Reply = Probed | Wrapped | Described | Signed | Certified | Unsealed | Endorsed | Attested | Beat | Failed

_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def frame(message: Request | Reply) -> bytes:
    body = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(body)) + body


def request(body: bytes) -> Request:
    return _requests.decode(body)


def reply(body: bytes) -> Reply:
    """Raises msgspec.MsgspecError."""
    return _replies.decode(body)
