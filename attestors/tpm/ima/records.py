"""The entries of a measurement list as they lie in its bytes (Linux, security/integrity/ima/ima_fs.c).

Little endian: the PCR, SHA-1 of the template data (zeros for a violation), the template's name after its length, the
template data after their length. The oldest template, `ima`, has no length before its data.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Generator
from typing import Final, NamedTuple

from operations.errors import InvalidArgument, Refused

SIZE_LIMIT: Final = 64 << 20
"""Bytes of a list."""
ENTRIES_LIMIT: Final = 1_000_000
DATA_LIMIT: Final = 1 << 20
"""Bytes of an entry's template data; keys and buffers are measured with what is in them."""
NAME_LIMIT: Final = 255
VIOLATION: Final = bytes(20)
ORIGINAL: Final = b"ima"

_HEAD = struct.Struct("<I20sI")
_LENGTH = struct.Struct("<I")
_DIGEST_SIZE = 20
_ORIGINAL_NAME_SIZE = 256
"""The oldest template hashes names padded to this many bytes."""


class Record(NamedTuple):
    """`data` are the template data, which `digest` is of; `end` is the offset of what comes after the entry."""

    pcr: int
    digest: bytes
    template: bytes
    data: bytes
    end: int


def scan(data: bytes, first: int = 0) -> Generator[Record]:
    """The entries, up to the end or an entry that has not wholly arrived; the first one has the number `first`.

    Raises InvalidArgument for what is no list, or has more than the limits allow.
    """
    size, offset, number = len(data), 0, first
    while offset + _HEAD.size <= size:
        pcr, digest, length = _HEAD.unpack_from(data, offset)
        if not 0 < length <= NAME_LIMIT or number >= ENTRIES_LIMIT:
            raise InvalidArgument(_what_is_wrong(number, length))
        start = offset + _HEAD.size + length
        template = data[offset + _HEAD.size : start]
        if template == ORIGINAL:
            name = start + _DIGEST_SIZE + _LENGTH.size
            if name > size:
                return
            end = name + _LENGTH.unpack_from(data, start + _DIGEST_SIZE)[0]
        else:
            if start + _LENGTH.size > size:
                return
            end = start + _LENGTH.size + _LENGTH.unpack_from(data, start)[0]
            start += _LENGTH.size
        if end - start > DATA_LIMIT:
            raise InvalidArgument(f"IMA list: entry {number} has {end - start} bytes of data, more than {DATA_LIMIT}")
        if end > size:
            return
        yield Record(pcr, digest, template, data[start:end], end)
        offset, number = end, number + 1


def hashed(record: Record) -> bytes:
    """What the template's hash is of: its data, of the oldest one with a padded name and without its length."""
    if record.template != ORIGINAL:
        return record.data
    digest, name = record.data[:_DIGEST_SIZE], record.data[_DIGEST_SIZE + _LENGTH.size :]
    return digest + name.ljust(_ORIGINAL_NAME_SIZE, b"\0")


def refuse_lie(record: Record, number: int) -> None:
    """Raise Refused unless the template's hash is of its data; a violation has none."""
    if record.digest != VIOLATION and hashlib.sha1(hashed(record), usedforsecurity=False).digest() != record.digest:
        raise Refused(f"IMA list: the template hash of entry {number} is not that of its data: the list was altered")


def _what_is_wrong(number: int, length: int) -> str:
    if number >= ENTRIES_LIMIT:
        return f"IMA list: more than the {ENTRIES_LIMIT} entries that a list may have; reboot the machine"
    return (
        f"IMA list: entry {number} is none: its template's name has {length} bytes. Is it binary_runtime_measurements?"
    )
