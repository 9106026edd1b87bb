"""An IMA list's values."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec


@dataclass(frozen=True, slots=True)
class ImaEntry:
    """One measurement. `algorithm` and `digest` are the file's hash; `signature` what the file carries (security.ima).

    A `violation` says that the file changed while it was measured: its digest is nothing to go by.
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
