"""Structures of UEFI that event data have (UEFI 2.10; TCG PC Client Platform Firmware Profile 1.06, 10.2).

What is malformed is None: the event is then one that says nothing.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from attestors.tpm.event_log.entries import printable

GLOBAL: Final = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
IMAGE_SECURITY: Final = UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
SHIM: Final = UUID("605dab50-e046-4300-abb6-3dd810dd8b23")

SIGNATURE_LIMIT: Final = 1 << 14
"""Signatures in one variable: dbx has some 400."""
NAME_LIMIT: Final = 512
"""Characters of a name."""

_VARIABLE: Final = struct.Struct("<16sQQ")
_SHIM_EXCESS: Final = 8
"""Bytes. Shim before 15.3 logs the padding of a structure behind the variable."""

_LIST: Final = struct.Struct("<16sIII")
_OWNER_SIZE: Final = 16
_X509: Final = UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
_SHA256: Final = UUID("c1c41626-504c-4092-aca9-41f936934328")
_X509_SHA256: Final = UUID("3bd2a492-96c0-4079-b420-fcf98ef103ed")
_HASH_SIZE: Final = 32

_IMAGE_LOAD: Final = struct.Struct("<QQQQ")
_NODE: Final = struct.Struct("<BBH")
_FILE_PATH: Final = (4, 4)
_FIRMWARE_FILE: Final = (4, 6)
_END: Final = 0x7F


@dataclass(frozen=True, slots=True)
class Variable:
    guid: UUID
    name: str
    data: bytes


def variable(data: bytes) -> Variable | None:
    """UEFI_VARIABLE_DATA (10.2.6)."""
    if len(data) < _VARIABLE.size:
        return None
    guid, characters, size = _VARIABLE.unpack_from(data)
    start = _VARIABLE.size + 2 * characters
    if characters > NAME_LIMIT or not 0 <= len(data) - start - size <= _SHIM_EXCESS:
        return None
    name = data[_VARIABLE.size : start].decode("utf-16-le", "backslashreplace")
    return Variable(UUID(bytes_le=guid), printable(name), data[start : start + size])


def signatures(data: bytes) -> tuple[bytes, ...] | None:
    """What EFI_SIGNATURE_LISTs hold (32.4.1), as SHA-256: hashes as they are, those of certificates and all else."""
    found: list[bytes] = []
    at = 0
    while at < len(data):
        if len(data) - at < _LIST.size:
            return None
        kind, list_size, header_size, size = _LIST.unpack_from(data, at)
        first, end = at + _LIST.size + header_size, at + list_size
        if end > len(data) or first > end or size <= _OWNER_SIZE or (end - first) % size:
            return None
        if len(found) + (end - first) // size > SIGNATURE_LIMIT:
            return None
        guid = UUID(bytes_le=kind)
        found.extend(_identity(guid, data[place + _OWNER_SIZE : place + size]) for place in range(first, end, size))
        at = end
    return tuple(found)


def _identity(kind: UUID, signature: bytes) -> bytes:
    if kind == _SHA256 and len(signature) == _HASH_SIZE:
        return signature
    if kind == _X509_SHA256 and len(signature) > _HASH_SIZE:  # a certificate's hash, and since when it is revoked
        return signature[:_HASH_SIZE]
    return hashlib.sha256(signature).digest()


def authority(data: bytes) -> bytes:
    """By what an image was verified, as SHA-256: EFI_SIGNATURE_DATA, or from shim a certificate without its owner."""
    signature = data if _is_certificate(data) else data[_OWNER_SIZE:]
    if _is_certificate(signature):
        return hashlib.sha256(signature).digest()
    return signature if len(signature) == _HASH_SIZE else hashlib.sha256(data).digest()


def _is_certificate(data: bytes) -> bool:
    """Whether these bytes are one DER SEQUENCE of the size that certificates have."""
    return data[:2] == b"\x30\x82" and len(data) == 4 + int.from_bytes(data[2:4])


def image_name(data: bytes) -> str:
    """The path of the file in an EFI_IMAGE_LOAD_EVENT (10.2.4); empty where it has none, as GRUB's kernels have."""
    if len(data) < _IMAGE_LOAD.size:
        return ""
    size = _IMAGE_LOAD.unpack_from(data)[3]
    if size > len(data) - _IMAGE_LOAD.size:
        return ""
    return printable("".join(_names(data[_IMAGE_LOAD.size : _IMAGE_LOAD.size + size]))[:NAME_LIMIT])


def _names(path: bytes) -> Iterator[str]:
    """The nodes of a device path (10.3) that name a file."""
    at = 0
    while at + _NODE.size <= len(path):
        kind, subtype, size = _NODE.unpack_from(path, at)
        if kind == _END or size < _NODE.size or at + size > len(path):
            return
        body = path[at + _NODE.size : at + size]
        if (kind, subtype) == _FILE_PATH:
            yield body.decode("utf-16-le", "backslashreplace").rstrip("\0")
        elif (kind, subtype) == _FIRMWARE_FILE and len(body) == _OWNER_SIZE:
            yield str(UUID(bytes_le=body))
        at += size
