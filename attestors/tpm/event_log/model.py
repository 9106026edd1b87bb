"""An event log's values: the events as they are, and what a log says was booted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

REGISTERS: Final = frozenset({0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 14})
"""A log is believed with a quote of all of these, or not at all: what a log leaves out is in none of its facts."""


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
    """`banks` are those that every event that was extended has a digest for.

    `locality` is that of TPM2_Startup, as the log tells it.
    """

    banks: tuple[str, ...]
    events: tuple[Event, ...]
    locality: int = 0


@dataclass(frozen=True, slots=True)
class Measured:
    """Something loaded and measured: its digest in the bank that is looked at, and its name where the log has one.

    For PE images the digest is the Authenticode hash. The name is told by whoever measured; only the digest is proven.
    What might be an image counts as one: no digest says what kind of thing it is of.
    """

    pcr: int
    digest: bytes
    name: str = ""


@dataclass(frozen=True, slots=True)
class BootFacts:
    """What a replayed log says, as far as its data are proven by their digests.

    `secure_boot` is None where nothing proves it. `variables` has SHA-256 hashes, by variable (PK, KEK, db, dbx,
    SbatLevel …): of each certificate's DER, or the hash itself that a signature list holds, or of all else that a
    variable holds; of shim's MokList, MokListX … the digest of the whole in `bank`. A variable that the log does not
    prove, or tells twice, is not in it. `authorities` are those by which images were verified, hashed likewise.
    `images` are what the firmware and loaders started, in order; `files` what a boot loader read (GRUB, PCR 9);
    `command_lines` the kernel's, in order.

    `unproven` are the events of PCRs 7, 8, 12 and 14 whose data are not what was hashed, and those of PCR 9 that say to
    be a kernel's options which no text proves: an authority, a command line or a key of the owner's may be among them,
    so that a rule about all of these is not met where there is one.
    `doubts` are lines for people on what is odd about the log.
    """

    bank: str
    secure_boot: bool | None = None
    firmware_version: str | None = None
    variables: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict[str, tuple[bytes, ...]])
    authorities: tuple[bytes, ...] = ()
    images: tuple[Measured, ...] = ()
    files: tuple[Measured, ...] = ()
    command_lines: tuple[str, ...] = ()
    unproven: tuple[Measured, ...] = ()
    doubts: tuple[str, ...] = ()
