"""gRPC over HTTP/2 as bytes: message frames, timeouts, statuses (grpc/doc/PROTOCOL-HTTP2.md)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message

from generated.google.rpc.status_pb2 import Status
from transport.engine import pack
from transport.status import Code, RpcError

CONTENT_TYPE: Final = b"application/grpc"
_TIMEOUT_UNITS: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_LONGEST_TIMEOUT: Final = 1e8 * 3600.0
_LONGEST_MESSAGE: Final = 6 * 1024
_LARGEST_DETAILS: Final = 6 * 1024
_PLAIN: Final = frozenset(range(0x20, 0x7F)) - {ord("%")}

_CODES: Final = {int(code): code for code in Code}

OK_TRAILERS: Final = pack([(b"grpc-status", b"0")])
RESPONSE_HEADERS: Final = pack(
    [(b":status", b"200"), (b"content-type", CONTENT_TYPE), (b"grpc-accept-encoding", b"identity")]
)


def frame(message: bytes) -> bytes:
    """A message behind its prefix: not compressed, four bytes of length."""
    return b"\0" + len(message).to_bytes(4, "big") + message


class Deframer:
    """Cuts a stream's bytes into messages of at most `limit` bytes."""

    __slots__ = ("_limit", "_need", "_parts", "_size", "encoding")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0
        self._need = 5
        self.encoding = "identity"

    @property
    def incomplete(self) -> bool:
        """Whether a message has begun and not ended."""
        return self._size > 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The messages that `data` completes. Raises RpcError for one that is compressed or too large."""
        self._parts.append(data)
        self._size += len(data)
        if self._size < self._need:
            return
        whole = data if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        at, size = 0, len(whole)
        self._need = 5
        while size - at >= 5:
            length = int.from_bytes(whole[at + 1 : at + 5], "big")
            if whole[at]:
                raise self._compressed(whole[at])
            if length > self._limit:
                raise RpcError(
                    Code.RESOURCE_EXHAUSTED, f"grpc: received message larger than max ({length} vs. {self._limit})"
                )
            if size - at - 5 < length:
                self._need = 5 + length
                break
            yield whole[at + 5 : at + 5 + length]
            at += 5 + length
        self._size = size - at
        if self._size:
            self._parts.append(whole[at:])

    def _compressed(self, flag: int) -> RpcError:
        if flag != 1:
            return RpcError(Code.INTERNAL, f"grpc: received unexpected payload format {flag}")
        if self.encoding == "identity":
            return RpcError(Code.INTERNAL, "grpc: compressed flag set with identity or empty encoding")
        return unknown_encoding(self.encoding)


def unknown_encoding(name: str) -> RpcError:
    return RpcError(Code.UNIMPLEMENTED, f'grpc: Decompressor is not installed for grpc-encoding "{name}"')


def parse_timeout(text: str) -> float:
    """Seconds of a grpc-timeout value. Raises ValueError with grpc-go's text."""
    if len(text) < 2:
        raise ValueError(f'transport: timeout string is too short: "{text}"')
    if len(text) > 9:
        raise ValueError(f'transport: timeout string is too long: "{text}"')
    unit = _TIMEOUT_UNITS.get(text[-1])
    if unit is None:
        raise ValueError(f'transport: timeout unit is not recognized: "{text}"')
    if not (text[:-1].isascii() and text[:-1].isdigit()):
        raise ValueError(f'strconv.ParseUint: parsing "{text[:-1]}": invalid syntax')
    return int(text[:-1]) * unit


def format_timeout(seconds: float) -> bytes:
    """A grpc-timeout value, rounded up, in the finest unit of at most eight digits."""
    seconds = min(max(seconds, 0.0), _LONGEST_TIMEOUT)
    for unit, size in ((b"u", 1e-6), (b"m", 1e-3), (b"S", 1.0), (b"M", 60.0)):
        count = -int(-seconds // size)
        if count < 100_000_000:
            return b"%d%s" % (count, unit)
    return b"%dH" % min(-int(-seconds // 3600), 99_999_999)


def encode_message(text: str) -> bytes:
    """A status message for grpc-message: what is not printable ASCII, and %, percent-encoded.

    So are spaces at either end, with which no field value may begin or end (RFC 9113, 8.2.1).
    """
    raw = text.encode("utf-8", "replace")
    inner = raw.strip(b" ")
    if len(inner) == len(raw) and all(byte in _PLAIN for byte in raw):
        return raw
    before = len(raw) - len(raw.lstrip(b" "))
    plain = range(before, before + len(inner))
    return b"".join(
        bytes((byte,)) if byte in _PLAIN and index in plain else b"%%%02X" % byte for index, byte in enumerate(raw)
    )


def decode_message(text: str) -> str:
    if "%" not in text:
        return text
    from urllib.parse import unquote  # commands seldom meet such a text, and the module is slow to load

    return unquote(text, errors="replace")


def encode_binary(value: bytes) -> bytes:
    """A value of a -bin header: base64 without padding."""
    return base64.b64encode(value).rstrip(b"=")


def decode_binary(text: str) -> bytes:
    """Raises ValueError when it is no base64, with or without padding."""
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)


def status_fields(error: RpcError) -> list[tuple[bytes, bytes]]:
    """The trailers of a failed call. They have to fit into one header list: a long message is cut, and details that
    are too large are left out."""
    message = encode_message(error.message)
    if len(message) > _LONGEST_MESSAGE:
        head, percent, cut = message[:_LONGEST_MESSAGE].rpartition(b"%")
        message = (head if percent and len(cut) < 2 else head + percent + cut) + b" ..."
    fields = [(b"grpc-status", b"%d" % error.code), (b"grpc-message", message)]
    if error.details:
        status = Status(code=int(error.code), message=error.message, details=[_packed(each) for each in error.details])
        packed = status.SerializeToString()
        if len(packed) <= _LARGEST_DETAILS:
            fields.append((b"grpc-status-details-bin", encode_binary(packed)))
    return fields


def status_from(trailers: Mapping[str, str]) -> RpcError | None:
    """What a call's trailers say: None for OK. Unknown codes read as UNKNOWN."""
    text = trailers.get("grpc-status", "")
    if text == "0":
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 3):
        return RpcError(Code.UNKNOWN, f'malformed grpc-status: "{text}"')
    number = int(text)
    code = _CODES.get(number, Code.UNKNOWN)
    return RpcError(code, decode_message(trailers.get("grpc-message", "")), _details(trailers))


def metadata_fields(metadata: Mapping[str, str]) -> Iterable[tuple[bytes, bytes]]:
    """Metadata as header fields. Raises ValueError for what no header may hold."""
    for name, value in metadata.items():
        if not name.isascii() or name != name.lower() or name.startswith((":", "grpc-")) or not value.isascii():
            raise ValueError(f"metadata {name!r} cannot be sent as a header")
        yield name.encode("ascii"), value.encode("ascii")


def _packed(message: Message) -> any_pb2.Any:
    if isinstance(message, any_pb2.Any):
        return message
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _details(trailers: Mapping[str, str]) -> list[Message]:
    """Details that are no base64 or no Status are the peer's mistake and are left out; the code still counts."""
    text = trailers.get("grpc-status-details-bin")
    if not text:
        return []
    try:
        return list(Status.FromString(decode_binary(text)).details)
    except (DecodeError, binascii.Error, ValueError):
        return []
