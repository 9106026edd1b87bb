"""PCR 7, and shim's PCR 14: whether Secure Boot was on, with which keys, and which of them verified what was started.

An attacker who has the machine after its boot can extend any register, and write the log anew as long as it replays.
What the firmware said stands before the separator, whose digest nobody can hide; there all must be proven, so that
no event can be passed off as another, and SecureBoot be told once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from attestors.tpm.event_log.efi import (
    GLOBAL,
    IMAGE_SECURITY,
    SHIM,
    Variable,
    authority,
    signatures,
    variable,
)
from attestors.tpm.event_log.entries import Entry, Register
from attestors.tpm.event_log.event_types import DEBUG_MODE, EFI_VARIABLE_AUTHORITY
from attestors.tpm.event_log.model import Measured

_SECURE_BOOT: Final = (GLOBAL, "SecureBoot")
_KEYS: Final[Mapping[tuple[UUID, str], str]] = {
    **{(GLOBAL, name): name for name in ("PK", "KEK")},
    **{(IMAGE_SECURITY, name): name for name in ("db", "dbx", "dbt", "dbr")},
}
_SBAT: Final = (SHIM, "SbatLevel")
_TRUSTED: Final = (SHIM, "MokListTrusted")
_STATES: Final[Mapping[bytes, bool]] = {b"\x01": True, b"\x00": False, b"": False}

_OWNERS: Final = ("MokList", "MokListX", "MokSBState", "MokDBState", "MokListTrusted", "MokPolicy")
"""Variables that shim measures into PCR 14, in the order in which it does."""


@dataclass(slots=True)
class Platform:
    """What the two registers say, in the terms of BootFacts."""

    secure_boot: bool | None = None
    variables: dict[str, tuple[bytes, ...]] = field(default_factory=dict[str, tuple[bytes, ...]])
    authorities: list[bytes] = field(default_factory=list[bytes])
    unproven: list[Measured] = field(default_factory=list[Measured])
    doubts: list[str] = field(default_factory=list[str])


def read(firmware: Register | None, shim: Register | None) -> Platform:
    """Of PCR 7 and PCR 14, as far as there are events for them."""
    platform = Platform()
    if firmware is not None:
        told = _before(firmware, platform)
        _after(firmware, platform, told)
        _conclude(firmware, platform, told)
    if shim is not None:
        _owners(shim, platform)
    return platform


def _before(register: Register, platform: Platform) -> list[Variable]:
    """The variables that the firmware measured, none of authorities. Doubts tell of all that is not in order."""
    told: list[Variable] = []
    if len(register.separators) != 1 or register.failed:
        platform.doubts.append("PCR 7: not one separator, and that a good one: Secure Boot is not proven")
    for entry in register.sealed:
        found = _variable(entry)
        if found is None and not entry.proven:
            if not platform.unproven:
                platform.doubts.append(
                    f"PCR 7: the data of event {entry.event.index} are not what was hashed: Secure Boot is not proven"
                )
            platform.unproven.append(Measured(7, entry.digest))
        elif found is None:
            if entry.event.data == DEBUG_MODE:
                platform.doubts.append("PCR 7: a debugger was attached to the firmware: Secure Boot is not proven")
        elif entry.event.type == EFI_VARIABLE_AUTHORITY and (found.guid, found.name) != _SECURE_BOOT:
            platform.authorities.append(authority(found.data))
        else:
            told.append(found)
    return told


def _after(register: Register, platform: Platform, told: list[Variable]) -> None:
    """Authorities, and shim's SbatLevel. A SecureBoot among them joins what was told: it contradicts the firmware's."""
    levels: list[bytes] = []
    for entry in register.later:
        found = _variable(entry)
        if found is None:
            if not entry.text:
                platform.unproven.append(Measured(7, entry.digest))
            continue
        known = (found.guid, found.name)
        if known == _SECURE_BOOT:
            told.append(found)
        elif known == _SBAT:
            levels.append(hashlib.sha256(found.data).digest())
        elif known != _TRUSTED:
            platform.authorities.append(authority(found.data))
    # One that is told twice, or may have been passed off as something unproven, is none.
    if len(levels) == 1 and not platform.unproven:
        platform.variables[_SBAT[1]] = (levels[0],)


def _conclude(register: Register, platform: Platform, told: list[Variable]) -> None:
    if platform.doubts or not register.separators:
        return
    for known, name in _KEYS.items():
        values = [one.data for one in told if (one.guid, one.name) == known]
        found = signatures(values[0]) if len(values) == 1 else None
        if found is not None:
            platform.variables[name] = found
        elif values:
            platform.doubts.append(f"PCR 7: {name} is told {len(values)} times, or is no list of signatures")
    states = [one.data for one in told if (one.guid, one.name) == _SECURE_BOOT]
    state = _STATES.get(states[0]) if len(states) == 1 else None
    if states and state is None:
        platform.doubts.append("PCR 7: SecureBoot is told more than once, or is neither 0 nor 1: it is not proven")
    elif state and not platform.variables.get("PK"):
        platform.doubts.append("PCR 7: SecureBoot is 1 without a platform key: it is not proven")
    else:
        platform.secure_boot = state


def _variable(entry: Entry) -> Variable | None:
    """The variable that was hashed. Shim before 15.3 logs one byte more than it hashes."""
    data = entry.event.data
    if entry.proven:
        return variable(data)
    return variable(data[:-1]) if entry.proves(data[:-1]) else None


def _owners(register: Register, platform: Platform) -> None:
    """The digests of what the machine's owner has enrolled in shim. Their names are believed in shim's order alone."""
    names = [entry.event.data.rstrip(b"\0").decode("ascii", "replace") for entry in register.entries]
    places = [_OWNERS.index(name) if name in _OWNERS else -1 for name in names]
    if -1 not in places and places == sorted(set(places)):
        platform.variables.update({name: (entry.digest,) for name, entry in zip(names, register.entries, strict=True)})
    else:
        platform.unproven.extend(Measured(14, entry.digest) for entry in register.entries)
