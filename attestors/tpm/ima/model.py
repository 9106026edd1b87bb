"""An IMA list's values."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec


class ImaEntry(msgspec.Struct, frozen=True, gc=False):
    """One measurement. `algorithm` and `digest` are the file's hash; `signature` what the file carries (security.ima).

    The algorithm of a digest by fs-verity, which is no hash of the file's bytes, is written `verity:sha256`. A
    `violation` says that the file changed while it was measured: its digest is nothing to go by, and no PCR proves its
    path. `path` has the kernel's `_` for each space, and `\\xff` for bytes that are no UTF-8; for what is no file it is
    what the kernel calls the thing measured (`boot_aggregate`, a keyring). `template` is told, not proven: nothing is
    to depend on it. A struct rather than a dataclass: a list has 200,000 of them.
    """

    pcr: int
    template: str
    algorithm: str
    digest: bytes
    path: str
    signature: bytes | None = None
    violation: bool = False


class Prefix(msgspec.Struct, frozen=True, kw_only=True):
    """A verified beginning of a list: how many entries and bytes, and PCR 10 after them (empty at none)."""

    entries: int = 0
    size: int = 0
    value: bytes = b""


@dataclass(frozen=True, slots=True)
class Replayed:
    """The entries after the former prefix, up to the quoted value, and the prefix that ends there."""

    entries: tuple[ImaEntry, ...]
    prefix: Prefix
