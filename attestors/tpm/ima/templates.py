"""What an entry says, by its template (Linux, Documentation/security/IMA-templates.rst).

A template is a series of fields, each after its length. Templates have names; one given to the kernel as a format has
its fields' names for a name (`d-ng|n-ng|sig`). A name not known here is that of a later kernel: its first two fields
are a digest and a path if they look like them, which says the digest's own prefix.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
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

_NAMED: Mapping[bytes, tuple[bytes, ...]] = {
    b"ima-ng": (b"d-ng", b"n-ng"),
    b"ima-sig": (b"d-ng", b"n-ng", b"sig"),
    b"ima-ngv2": (b"d-ngv2", b"n-ng"),
    b"ima-sigv2": (b"d-ngv2", b"n-ng", b"sig"),
    b"ima-buf": (b"d-ng", b"n-ng", b"buf"),
    b"ima-modsig": (b"d-ng", b"n-ng", b"sig", b"d-modsig", b"modsig"),
    b"evm-sig": (
        *(b"d-ng", b"n-ng", b"evmsig", b"xattrnames", b"xattrlengths", b"xattrvalues", b"iuid", b"igid", b"imode"),
    ),
}
_PLAIN_DIGESTS = {16: "md5", 20: "sha1"}
_DIGEST_FIELDS, _NAME_FIELDS = (b"d-ngv2", b"d-ng", b"d"), (b"n-ng", b"n")
_DIGEST_SIZE = 20
_LENGTH = struct.Struct("<I")


def entry(record: Record, number: int) -> ImaEntry:
    """The entry as a value. Raises InvalidArgument for one that is not what its template says, by its number."""
    try:
        return _original(record) if record.template == ORIGINAL else _by_fields(record)
    except InvalidArgument as error:
        raise InvalidArgument(f"IMA list: entry {number} ({_text(record.template)}): {error}") from error


def _original(record: Record) -> ImaEntry:
    digest, name = bytes(record.data[:_DIGEST_SIZE]), bytes(record.data[_DIGEST_SIZE + _LENGTH.size :])
    return ImaEntry(record.pcr, "ima", "sha1", digest, _path(name), None, record.digest == VIOLATION)


def _by_fields(record: Record) -> ImaEntry:
    fields = _fields(bytes(record.data))
    names = _NAMED.get(record.template)
    signature = None
    if names is None:
        digest, path, signature = _self_described(record.template, fields)
    elif len(names) != len(fields):
        raise InvalidArgument(f"{len(fields)} fields instead of {len(names)}")
    else:
        digest, path = fields[0], fields[1]
        if len(names) > 2 and names[2] == b"sig":
            signature = fields[2]
    algorithm, value = _digest(digest)
    return ImaEntry(
        record.pcr,
        _text(record.template),
        algorithm,
        value,
        _path(path.removesuffix(b"\0")),
        signature or None,
        record.digest == VIOLATION,
    )


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


def _self_described(template: bytes, fields: Sequence[bytes]) -> tuple[bytes, bytes, bytes | None]:
    """Digest, path and signature of a template that is named by its fields' names, or that nobody here knows."""
    if b"|" not in template:
        if len(fields) < 2 or b"\0" not in fields[0] or not fields[1].endswith(b"\0"):
            raise InvalidArgument("a template that is not known here, and does not begin with a digest and a path")
        return fields[0], fields[1], None
    names = template.split(b"|")
    if len(names) != len(fields):
        raise InvalidArgument(f"{len(fields)} fields instead of {len(names)}")
    by_name = dict(zip(names, fields, strict=True))
    digest = next((by_name[name] for name in _DIGEST_FIELDS if name in by_name), None)
    path = next((by_name[name] for name in _NAME_FIELDS if name in by_name), None)
    if digest is None or path is None or len(by_name) != len(names):
        raise InvalidArgument(
            "it needs one digest and one path; leave ima_template_fmt out of the kernel's command line"
        )
    return digest, path, by_name.get(b"sig")


def _digest(field: bytes) -> tuple[str, bytes]:
    """A digest field's algorithm and digest: `sha256:`, NUL, digest; since ima-ngv2 with `ima:` or `verity:` before."""
    prefix, nul, value = field.partition(b"\0")
    if not nul or prefix[-1:] != b":":
        if (algorithm := _PLAIN_DIGESTS.get(len(field))) is not None:
            return algorithm, field
        raise InvalidArgument("its digest does not say by which algorithm")
    algorithm = prefix[:-1].removeprefix(b"ima:").decode("ascii", "replace")
    if DIGEST_SIZES.get(algorithm.removeprefix("verity:")) != len(value):
        raise InvalidArgument(f"a digest of {len(value)} bytes by {algorithm[:32]!r}")
    return algorithm, value


def _path(name: bytes) -> str:
    if len(name) > PATH_LIMIT or b"\0" in name:
        raise InvalidArgument(f"a path of {len(name)} bytes, or with a zero in it")
    return _text(name)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
