"""What the program and a worker process say to each other: frames of MessagePack, one socket pair for each session.

A frame is a length of four bytes, big-endian, and a message. The program asks one thing at a time on a socket; the
worker answers with `Done` or `Failure`, before which it may send `Beat`s, and ask for the PIN with `PinWanted`, tell
what became of it with `PinTried`. Both ends are ours and of one release: a message that cannot be read ends the worker.
"""

from __future__ import annotations

import struct
from enum import Enum

import msgspec

from keystores.pkcs11.profiles import ProfileName

FRAME_LIMIT = 4 << 20
"""Bytes of a message; 1,000 signatures of RSA-4096 are half a megabyte."""
_HEADER = struct.Struct(">I")
HEADER_SIZE = _HEADER.size


class TokenName(msgspec.Struct, frozen=True, array_like=True):
    """The attributes that a token must have; None matches any. `text` is how the configuration names it."""

    text: str
    label: str | None = None
    serial: str | None = None
    manufacturer: str | None = None
    model: str | None = None


class Mechanism(Enum):
    """How a key signs. ECDSA and PSS take a digest, PKCS1 a DER DigestInfo, EDDSA a message."""

    ECDSA = "ecdsa"
    PKCS1 = "pkcs1"
    PSS_SHA256 = "pss-sha256"
    PSS_SHA384 = "pss-sha384"
    PSS_SHA512 = "pss-sha512"
    EDDSA = "eddsa"


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


class Open(_Message, frozen=True):
    """Load the module, find the token, log in. Gives `TokenFacts`. The first request of a worker."""

    module_path: str
    token: TokenName
    profile: ProfileName


class Check(_Message, frozen=True):
    """Ask the token anything. Gives None."""


class ListKeys(_Message, frozen=True):
    """The private keys whose label begins with the prefix. Gives a list of `FoundKey`."""

    label_prefix: str


class FindKey(_Message, frozen=True):
    """The private keys of exactly that label. Gives a list of `FoundKey`."""

    label: str


class Generate(_Message, frozen=True):
    """Make a key pair, EC by `ec_parameters` (DER) or else RSA. Gives its `PublicParts`."""

    cka_id: bytes
    label: str
    kind: str
    ec_parameters: bytes | None
    modulus_bits: int | None


class Sign(_Message, frozen=True):
    """Sign each payload by the key of that CKA_ID or, where it is None, of that label. Gives a list of bytes."""

    cka_id: bytes | None
    label: str | None
    mechanism: Mechanism
    payloads: list[bytes]


class Relabel(_Message, frozen=True):
    """Change the label of both halves. Gives None."""

    cka_id: bytes
    label: str


class Destroy(_Message, frozen=True):
    """Destroy both halves, if they are there. Gives None."""

    cka_id: bytes


class DescribeKeys(_Message, frozen=True):
    """The private and secret keys whose label begins with the prefix. Gives a list of `DescribedKey`.

    The `expected` CKA_IDs must be among them: some modules show nothing, and no error, when the token has left them.
    """

    label_prefix: str
    expected: list[bytes]


class Seal(_Message, frozen=True):
    """What the secret key of that label makes of the data; without one it is made as `cka_id`, unless that is None.

    Gives `Sealed`. `witness` is the CKA_ID of a key without which the token is not believed.
    """

    label: str
    cka_id: bytes | None
    data: bytes
    witness: bytes | None


class PinGiven(_Message, frozen=True):
    """The answer to `PinWanted`: log in with it, once."""

    pin: str


class PinDenied(_Message, frozen=True):
    """The other answer: there is no PIN to be tried. Raise the error."""

    kind: str
    text: str


Request = Open | Check | ListKeys | FindKey | Generate | Sign | Relabel | Destroy | DescribeKeys | Seal
ToWorker = Request | PinGiven | PinDenied


class Beat(_Message, frozen=True):
    """The device has answered; there is more to do."""


class PinWanted(_Message, frozen=True):
    """The session must log in."""


class PinTried(_Message, frozen=True):
    """What the token said to the PIN."""

    accepted: bool


class Done(_Message, frozen=True):
    result: msgspec.Raw


class Failure(_Message, frozen=True):
    """`kind` is the name of one of `failures.KINDS`."""

    kind: str
    text: str


ToProgram = Beat | PinWanted | PinTried | Done | Failure


class TokenFacts(msgspec.Struct, frozen=True, array_like=True):
    """What a token says of itself. `sessions` is how many this program may have open, by the token's own count."""

    label: str
    serial: str
    manufacturer: str
    model: str
    library: str
    profile: ProfileName
    sessions: int


class PublicParts(msgspec.Struct, frozen=True, array_like=True):
    """A public key as its attributes have it: CKA_EC_PARAMS and CKA_EC_POINT, or CKA_MODULUS, CKA_PUBLIC_EXPONENT."""

    ec_parameters: bytes | None = None
    ec_point: bytes | None = None
    modulus: bytes | None = None
    exponent: bytes | None = None


class FoundKey(msgspec.Struct, frozen=True, array_like=True):
    """A private key; `public` is None when the token has no single public key object for it."""

    cka_id: bytes
    label: str
    public: PublicParts | None


class DescribedKey(msgspec.Struct, frozen=True, array_like=True):
    """A key and its attributes by the standard's names, as far as the token tells them. `secret` says that it is a
    secret key; the others are private ones.
    """

    key: FoundKey
    attributes: dict[str, bool]
    secret: bool = False


class Sealed(msgspec.Struct, frozen=True, array_like=True):
    """32 bytes, and which key made them."""

    cka_id: bytes
    secret: bytes


_encoder = msgspec.msgpack.Encoder()
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_to_program: msgspec.msgpack.Decoder[ToProgram] = msgspec.msgpack.Decoder(ToProgram)


def frame(message: ToWorker | ToProgram) -> bytes:
    body = _encoder.encode(message)
    return _HEADER.pack(len(body)) + body


def done(result: object) -> Done:
    return Done(msgspec.Raw(_encoder.encode(result)))


def size(header: bytes) -> int:
    """The length of the message after a header. Raises ValueError for one that is too long."""
    [length] = _HEADER.unpack(header)
    if length > FRAME_LIMIT:
        raise ValueError(f"a frame of {length} bytes")
    return int(length)


def to_worker(body: bytes) -> ToWorker:
    return _to_worker.decode(body)


def to_program(body: bytes) -> ToProgram:
    return _to_program.decode(body)
