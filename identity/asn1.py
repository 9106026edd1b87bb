"""The little DER (X.690) that certificate templates need: writing elements, and walking over what a builder wrote."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import lru_cache

INTEGER = 0x02
BIT_STRING = 0x03
OCTET_STRING = 0x04
_OBJECT_IDENTIFIER = 0x06
SEQUENCE = 0x30
_UTC_TIME = 0x17
_GENERALIZED_TIME = 0x18

# Digits of one arc: room for those made of UUIDs (X.667).
_MAX_ARC = 39

# RFC 5280, 4.1.2.5: dates through the year 2049 are UTCTime, later ones GeneralizedTime.
_YEAR_2050 = 2524608000


def element(tag: int, content: bytes) -> bytes:
    """Tag, length and content."""
    length = len(content)
    if length < 0x80:
        return bytes((tag, length)) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(octets))) + octets + content


def integer(value: int) -> bytes:
    """A non-negative INTEGER."""
    return element(INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


@lru_cache(maxsize=256)
def object_identifier(dotted: str) -> bytes:
    """An OBJECT IDENTIFIER in its dotted notation (X.690, 8.19). Raises ValueError."""
    parts = dotted.split(".")
    if len(parts) < 2 or not all(part.isascii() and part.isdigit() and len(part) <= _MAX_ARC for part in parts):
        raise ValueError(f"{dotted!r} is no object identifier")
    first, second, *rest = map(int, parts)
    if first > 2 or (first < 2 and second > 39):
        raise ValueError(f"{dotted!r} is no object identifier")
    return element(_OBJECT_IDENTIFIER, b"".join(map(_arc, (first * 40 + second, *rest))))


def _arc(value: int) -> bytes:
    """Seven bits an octet, the highest first; all but the last are marked."""
    octets = [value & 0x7F]
    while value := value >> 7:
        octets.append(value & 0x7F | 0x80)
    return bytes(reversed(octets))


@lru_cache(maxsize=256)
def validity(not_before: int, not_after: int) -> bytes:
    """The Validity sequence of two times in unix seconds."""
    return element(SEQUENCE, _time(not_before) + _time(not_after))


def children(encoded: bytes) -> Iterator[bytes]:
    """The elements in the content of one constructed element, each with its tag and length.

    For DER that our own libraries wrote: a malformed input raises ValueError or IndexError.
    """
    start, end = content_of(encoded)
    while start < end:
        _, stop = content_of(encoded, start)
        yield encoded[start:stop]
        start = stop


def content_of(encoded: bytes, start: int = 0) -> tuple[int, int]:
    """Where the content of the element at `start` begins and ends."""
    length = encoded[start + 1]
    begin = start + 2
    if length & 0x80:
        octets = length & 0x7F
        length = int.from_bytes(encoded[begin : begin + octets], "big")
        begin += octets
    if begin + length > len(encoded):
        raise ValueError("DER element is longer than its container")
    return begin, begin + length


def _time(seconds: int) -> bytes:
    if seconds < _YEAR_2050:
        return element(_UTC_TIME, time.strftime("%y%m%d%H%M%SZ", time.gmtime(seconds)).encode())
    return element(_GENERALIZED_TIME, time.strftime("%Y%m%d%H%M%SZ", time.gmtime(seconds)).encode())
