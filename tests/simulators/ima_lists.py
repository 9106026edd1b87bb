"""IMA's entries and lists as kernels write them, and what they extend."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

from attestors.tpm.pcrs import IMA_PCR


def fields(*values: bytes) -> bytes:
    """Template data: each field after its length."""
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def framed(template: bytes, data: bytes, *, pcr: int = IMA_PCR, digest: bytes | None = None) -> bytes:
    """An entry of any template but the oldest; `digest` lies about the data."""
    if digest is None:
        digest = hashlib.sha1(data, usedforsecurity=False).digest()
    head = struct.pack("<I20sI", pcr, digest, len(template)) + template
    return head + struct.pack("<I", len(data)) + data


def entry(
    path: str, digest: bytes, signature: bytes = b"", *, algorithm: str = "sha256", template: bytes = b"ima-sig"
) -> bytes:
    """A file's, by default in the template of Debian's kernels."""
    return framed(template, fields(algorithm.encode() + b":\0" + digest, path.encode() + b"\0", signature))


def violation(path: str) -> bytes:
    return framed(b"ima-sig", fields(b"sha256:\0" + bytes(32), path.encode() + b"\0", b""), digest=bytes(20))


def original(path: str, digest: bytes) -> bytes:
    """One in the oldest template, `ima`."""
    name = path.encode()
    data = digest + name.ljust(256, b"\0")
    head = struct.pack("<I20sI", IMA_PCR, hashlib.sha1(data, usedforsecurity=False).digest(), 3) + b"ima"
    return head + digest + struct.pack("<I", len(name)) + name


def long(entries: int, first: int = 0) -> bytes:
    """A list like a server's of that many files, about 115 bytes each."""
    return b"".join(
        entry(f"/usr/lib/x86_64-linux-gnu/libexample{number:06}.so.1", hashlib.sha256(b"%d" % number).digest())
        for number in range(first, first + entries)
    )


def replayed(bank: str, extended: Sequence[bytes], value: bytes | None = None) -> bytes:
    """A register after digests of any size were extended, padded with zeros."""
    size = hashlib.new(bank).digest_size
    value = bytes(size) if value is None else value
    for digest in extended:
        value = hashlib.new(bank, value + digest.ljust(size, b"\0")).digest()
    return value
