"""What a log says was booted, as far as its digests prove it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final
from uuid import UUID

from attestors.tpm.event_log import loaders, secure_boot
from attestors.tpm.event_log.entries import Register, hashed, registers
from attestors.tpm.event_log.event_types import S_CRTM_VERSION
from attestors.tpm.event_log.model import BootFacts, EventLog

_FIRMWARE_PCRS: Final = range(8)
_GUID_SIZE: Final = 16
_VERSION_LIMIT: Final = 256
"""Characters of a version."""


def facts(log: EventLog, bank: str) -> BootFacts:
    """The facts of a log that `replay.verify` has found to be what was quoted. Raises Refused for an absent bank."""
    found = registers(log, bank)
    platform = secure_boot.read(found.get(7), found.get(14))
    lines = loaders.command_lines(found)
    return BootFacts(
        bank=bank,
        secure_boot=platform.secure_boot,
        firmware_version=_firmware_version(found.get(0)),
        variables=platform.variables,
        authorities=tuple(platform.authorities),
        images=tuple(loaders.images(found)),
        files=tuple(loaders.files(found, lines)),
        command_lines=tuple(lines.lines),
        unproven=(*platform.unproven, *lines.unproven),
        doubts=(*platform.doubts, *_separator_doubts(found)),
    )


def _firmware_version(register: Register | None) -> str | None:
    """EV_S_CRTM_VERSION, of which there is one, before the separator."""
    if register is None:
        return None
    told = [entry for entry in register.sealed if entry.event.type == S_CRTM_VERSION and entry.proven]
    return _version(told[0].event.data) if len(told) == 1 else None


def _version(data: bytes) -> str | None:
    """A text in UTF-16 or ASCII, a GUID, or a structure of the vendor's, in hex; None of nothing."""
    for encoding in ("utf-16-le", "ascii"):
        try:
            text = data.decode(encoding).rstrip("\0")
        except UnicodeDecodeError:
            continue
        if not text:
            return None
        if len(text) <= _VERSION_LIMIT and text.isascii() and text.isprintable():
            return text
    if len(data) == _GUID_SIZE:
        return str(UUID(bytes_le=data))
    return data.hex() if len(data) <= 2 * _GUID_SIZE else hashed("sha256", data).hex()


def _separator_doubts(found: Mapping[int, Register]) -> Iterator[str]:
    """Where the firmware has not said once, and well, that it was done (Platform Firmware Profile, 2.3.4)."""
    for number in _FIRMWARE_PCRS:
        register = found.get(number)
        if register is None:
            continue
        if register.failed:
            yield f"PCR {number}: an error separator: the firmware could not measure all"
        if not register.separators:
            yield f"PCR {number}: no separator: nothing tells what the firmware measured from what came later"
        elif len(register.separators) > 1:
            yield f"PCR {number}: {len(register.separators)} separators: there is but one in a boot"
