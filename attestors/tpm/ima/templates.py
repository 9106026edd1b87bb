"""What an entry says, by its template (Linux, Documentation/security/IMA-templates.rst).

A template is a series of fields, each after its length. A name says which ones, or lists them (`d-ng|n-ng|sig`), but no
hash is of the name: whoever sends a list may call a template what he likes. Digest and path are therefore the first two
fields, as in all of the kernel's templates, whatever the name; of the others only a signature is taken, which proves
itself.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from attestors.tpm.ima.model import ImaEntry
from attestors.tpm.ima.records import ORIGINAL, VIOLATION, Record
from operations.errors import InvalidArgument

PATH_LIMIT: Final = 4096
"""Bytes, as the kernel's PATH_MAX."""
FIELDS_LIMIT: Final = 32
DIGEST_SIZES: Final[Mapping[str, int]] = MappingProxyType(
    dict(
        [("md5", 16), ("sha1", 20), ("rmd160", 20), ("sha224", 28)]
        + [(name, 32) for name in ("sha256", "sha3-256", "sm3", "sm3-256", "streebog256", "wp256")]
        + [(name, 48) for name in ("sha384", "sha3-384", "wp384")]
        + [(name, 64) for name in ("sha512", "sha3-512", "streebog512", "wp512")]
    )
)
"""Bytes of a digest, by the names that the kernel gives algorithms."""

_SIGNATURES: Mapping[bytes, int] = {b"ima-sig": 2, b"ima-sigv2": 2, b"ima-modsig": 2}
"""Which field is the file's signature, by the template's name."""
_PREFIXES = {
    kind.encode() + name.encode() + b":": (("" if kind == "ima:" else kind) + name, size)
    for kind in ("", "ima:", "verity:")
    for name, size in DIGEST_SIZES.items()
}
"""Algorithms and sizes by what stands before a digest."""
_PLAIN_DIGESTS = {16: "md5", 20: "sha1"}
_DIGEST_SIZE = 20
_LENGTH = struct.Struct("<I")


def entry(record: Record, number: int) -> ImaEntry:
    """The entry as a value. Raises InvalidArgument for one that is not what its template says, by its number."""
    try:
        return _original(record) if record.template == ORIGINAL else _by_fields(record)
    except InvalidArgument as error:
        raise InvalidArgument(f"IMA list: entry {number} ({_text(record.template)}): {error}") from error


def _original(record: Record) -> ImaEntry:
    digest, name = record.data[:_DIGEST_SIZE], record.data[_DIGEST_SIZE + _LENGTH.size :]
    return ImaEntry(record.pcr, "ima", "sha1", digest, _path(name), None, record.digest == VIOLATION)


def _by_fields(record: Record) -> ImaEntry:
    fields = _fields(record.data)
    if len(fields) < 2:
        raise InvalidArgument("it does not begin with a digest and a path")
    template, at = _named(record.template)
    signature = fields[at] if at is not None and at < len(fields) else b""
    algorithm, value = _digest(fields[0])
    path, violation = _path(fields[1].removesuffix(b"\0")), record.digest == VIOLATION
    return ImaEntry(record.pcr, template, algorithm, value, path, signature or None, violation)


def _fields(data: bytes) -> list[bytes]:
    fields: list[bytes] = []
    offset, size = 0, len(data)
    while offset < size:
        start = offset + _LENGTH.size
        if start > size or len(fields) == FIELDS_LIMIT:
            raise InvalidArgument("its data are no fields")
        offset = start + _LENGTH.unpack_from(data, offset)[0]
        if offset > size:
            raise InvalidArgument("a field is longer than the data")
        fields.append(data[start:offset])
    return fields


@lru_cache(maxsize=64)
def _named(template: bytes) -> tuple[str, int | None]:
    """The name as one string for all entries, and which field is the file's signature."""
    if b"|" not in template:
        return _text(template), _SIGNATURES.get(template)
    names = template.split(b"|")
    return _text(template), names.index(b"sig") if b"sig" in names[2:] else None


def _digest(field: bytes) -> tuple[str, bytes]:
    """A digest field's algorithm and digest: `sha256:`, NUL, digest; since ima-ngv2 with `ima:` or `verity:` before."""
    prefix, nul, value = field.partition(b"\0")
    if (known := _PREFIXES.get(prefix)) is not None and nul:
        if len(value) != known[1]:
            raise InvalidArgument(f"a digest of {len(value)} bytes by {known[0]}")
        return known[0], value
    if (algorithm := _PLAIN_DIGESTS.get(len(field))) is not None:
        return algorithm, field
    raise InvalidArgument(
        "its first field is no digest by an algorithm that is known here; if the kernel's command line has"
        " ima_template_fmt, have it begin with d-ng|n-ng"
    )


def _path(name: bytes) -> str:
    if len(name) > PATH_LIMIT or b"\0" in name:
        raise InvalidArgument(f"a path of {len(name)} bytes, or with a zero in it")
    return _text(name)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
