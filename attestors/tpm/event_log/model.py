"""An event log's values: the events as they are, and what a log says was booted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Event:
    """An entry (TCG PC Client Platform Firmware Profile, 10.2.2). `digests` by bank, `index` from 0 with the header."""

    index: int
    pcr: int
    type: int
    digests: Mapping[str, bytes]
    data: bytes


@dataclass(frozen=True, slots=True)
class EventLog:
    """`banks` are those that every event has a digest for. `locality` is that of TPM2_Startup, as the log tells it."""

    banks: tuple[str, ...]
    events: tuple[Event, ...]
    locality: int = 0


@dataclass(frozen=True, slots=True)
class Measured:
    """Something loaded and measured: its digest in the bank that is looked at, and its name where the log has one.

    For PE images the digest is the Authenticode hash. The name is told by whoever measured; only the digest is proven.
    """

    pcr: int
    digest: bytes
    name: str = ""


@dataclass(frozen=True, slots=True)
class BootFacts:
    """What a replayed log says, as far as its data are proven by their digests.

    `secure_boot` is None where nothing proves it. `variables` has SHA-256 hashes, by variable (PK, KEK, db, dbx,
    MokList …): of each certificate's DER, or the hash itself that a signature list holds. `authorities` are those by
    which images were verified. `images` are what the firmware and loaders started, in order; `files` what a boot
    loader read (GRUB, PCR 9); `command_lines` the kernel's, in order.
    """

    bank: str
    secure_boot: bool | None = None
    firmware_version: str | None = None
    variables: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict[str, tuple[bytes, ...]])
    authorities: tuple[bytes, ...] = ()
    images: tuple[Measured, ...] = ()
    files: tuple[Measured, ...] = ()
    command_lines: tuple[str, ...] = ()
