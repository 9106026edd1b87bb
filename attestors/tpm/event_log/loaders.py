"""What was started and read: PCRs 2 and 4 of the firmware, 8 and 9 of GRUB, 9 of the kernel's stub, 12 of systemd's.

An image or a file is known by its digest alone, so every event that could be one is one, whatever it is called. A
command line is in the data, hashed in one of the ways that GRUB and systemd-stub have.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from attestors.tpm.event_log.efi import NAME_LIMIT, image_name
from attestors.tpm.event_log.entries import Entry, Register, hashed, printable
from attestors.tpm.event_log.event_types import EFI_IMAGES, EVENT_TAG
from attestors.tpm.event_log.model import Measured

_IMAGE_PCRS: Final = (2, 4)
_COMMAND_PCRS: Final = (8, 12)
_FILE_PCR: Final = 9

_LABELLED: Final = re.compile(rb"([a-z_]{1,32}):? (.*)", re.DOTALL)
"""GRUB's texts: what they are, and what was hashed. Red Hat's of 2018 have no colon."""
_COMMAND: Final = b"grub_cmd"
_PLACE: Final = re.compile(r"[/(+0-9]")
"""How the name of a file begins, and no command of GRUB: on a file system, on a device, a list of blocks."""
_STARTS_LINUX: Final = "linux"
_BOOT_IMAGE: Final = "BOOT_IMAGE="

_LINE_LIMIT: Final = 32 << 10
"""Bytes of a command line: kernels take 2048 to 4096, and cut what is longer."""

_WORD: Final = struct.Struct("<I")
_LOAD_OPTIONS: Final = _WORD.pack(0x8F3B22ED)
"""How the kernel's stub tags the digest of its options (drivers/firmware/efi/libstub)."""

_TAG: Final = struct.Struct("<II")
_WINDOWS: Final = b"WBCL"
_WINDOWS_LIMIT: Final = 1 << 16


@dataclass(slots=True)
class CommandLines:
    """The kernel's, in order, and the events that may hide one.

    `options` are digests of what may have come of a line or a command, as UEFI has a kernel's options; with the text
    where no line tells it.
    """

    lines: list[str] = field(default_factory=list[str])
    unproven: list[Measured] = field(default_factory=list[Measured])
    options: dict[bytes, str | None] = field(default_factory=dict[bytes, str | None])


def images(registers: Mapping[int, Register]) -> list[Measured]:
    """All that was extended into PCRs 2 and 4, but for separators and short texts such as those of actions."""
    return [
        Measured(number, entry.digest, image_name(entry.event.data) if entry.event.type in EFI_IMAGES else "")
        for number in _IMAGE_PCRS
        for entry in _entries(registers, number)
        if not entry.text
    ]


def files(registers: Mapping[int, Register], lines: CommandLines) -> list[Measured]:
    """All that was extended into PCR 9, but for options of the kernel that are told elsewhere."""
    return [
        Measured(_FILE_PCR, entry.digest, _name(entry))
        for entry in _entries(registers, _FILE_PCR)
        if entry.digest not in lines.options
    ]


def _name(entry: Entry) -> str:
    data = entry.event.data
    if entry.event.type == EVENT_TAG and _is_tagged(data):
        data = data[_TAG.size :]
    return printable(data[:NAME_LIMIT].rstrip(b"\0").decode("utf-8", "backslashreplace"))


def command_lines(registers: Mapping[int, Register]) -> CommandLines:
    """Of PCRs 8 and 12, and of the kernel's own stub.

    GRUB hashes neither its label nor, where it is new, the NUL, so that a command line may have been labelled a
    command: it is told by the file's name, with which it begins. And after each `linux` command there is a command
    line; where there is none, the command counts as unproven.
    """
    found = CommandLines()
    for number in _COMMAND_PCRS:
        started: Entry | None = None
        for entry in _entries(registers, number):
            if _is_of_windows(entry):
                continue
            text = _text(entry)
            if text is None:
                _doubt(found, entry)
                continue
            _remember(found, entry.bank, text)
            if not text.command:
                found.lines.append(text.text)
                started = None
            elif text.text.startswith(_STARTS_LINUX):
                _doubt(found, started)
                started = entry
        _doubt(found, started)
    _add_options(found, registers)
    return found


def _remember(found: CommandLines, bank: str, text: _Text) -> None:
    """What a kernel may have been given: of `chainloader FILE OPTIONS`, or of a line as GRUB 2.12 and the stub have it.

    The first has a NUL at its end, the second none. It is no file then, so it must be such that no file that does
    anything has these bytes: not empty, and a NUL after each letter. Other letters could spell a script in UTF-16.
    """
    _, _, after_one = text.text.partition(" ")
    _, _, after_two = after_one.partition(" ")
    for options in (after_two,) if text.command else (text.text, f"{_BOOT_IMAGE}{text.text}"):
        if not options or not options.isascii():
            continue
        for whole in (options, f"{options}\0"):
            found.options.setdefault(hashed(bank, whole.encode("utf-16-le")), options if text.command else None)


def _add_options(found: CommandLines, registers: Mapping[int, Register]) -> None:
    """What the kernel's stub says that it was given is a digest alone, and proven where a text has it."""
    for entry in _entries(registers, _FILE_PCR):
        line = found.options.get(entry.digest)
        if line is not None and line not in found.lines:
            found.lines.append(line)
        elif entry.digest not in found.options and entry.event.data[: _WORD.size] == _LOAD_OPTIONS:
            _doubt(found, entry)


def _doubt(found: CommandLines, entry: Entry | None) -> None:
    if entry is not None:
        found.unproven.append(Measured(entry.event.pcr, entry.digest))


@dataclass(frozen=True, slots=True)
class _Text:
    text: str
    command: bool


def _text(entry: Entry) -> _Text | None:
    """A command of GRUB's or a command line, whose digest proves it."""
    data = entry.event.data
    if len(data) > _LINE_LIMIT:
        return None
    labelled = _LABELLED.fullmatch(data)
    if labelled and any(entry.proves(one) for one in (labelled[2].removesuffix(b"\0"), labelled[2])):
        text = printable(labelled[2].removesuffix(b"\0").decode("utf-8", "backslashreplace"))
        return _Text(text, labelled[1] == _COMMAND and not _PLACE.match(text))
    # systemd-stub before 252 logs one byte less than it hashes.
    whole = next((one for one in (data, data + b"\0") if entry.proves(one)), None)
    return None if whole is None else _Text(_decoded(whole), command=False)


def _decoded(data: bytes) -> str:
    """A command line in UTF-16, as UEFI has its load options, or in bytes."""
    narrow = data.rstrip(b"\0")
    encoding = "utf-16-le" if b"\0" in narrow else "utf-8"
    text = (data if b"\0" in narrow else narrow).decode(encoding, "backslashreplace")
    return printable(text.rstrip("\0"))


def _is_of_windows(entry: Entry) -> bool:
    """Windows' boot manager has PCR 12 for its settings, each below 64 KiB.

    No command line looks so: the size's upper half would end it, as its fourth letter in UTF-16, or its seventh byte.
    """
    data = entry.event.data
    return entry.proven and (data == _WINDOWS or (_is_tagged(data) and len(data) < _WINDOWS_LIMIT))


def _is_tagged(data: bytes) -> bool:
    """TCG_PCClientTaggedEvent (10.4.2.1): an identifier, the size of the rest, and that."""
    return len(data) > _TAG.size and _TAG.unpack_from(data)[1] == len(data) - _TAG.size


def _entries(registers: Mapping[int, Register], number: int) -> list[Entry]:
    """A register's, without its separators."""
    register = registers.get(number)
    return [entry for entry in register.entries if not entry.separator] if register else []
