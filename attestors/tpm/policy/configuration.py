"""The policy file as it is written. Names are those of the UEFI variables and of IMA where these have one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from operations import hcl
from operations.sections import Section

Violations = Literal["refuse", "allow"]


class Digests(Section, frozen=True, kw_only=True):
    """A rule about a set of hashes, each in hex. Of what was measured, it asks in turn:

    all of `require` must be among it, one of `require_any` at least, nothing but `allow_only`, and none of `forbid`.
    """

    require: tuple[str, ...] = ()
    require_any: tuple[str, ...] = ()
    allow_only: tuple[str, ...] | None = None
    forbid: tuple[str, ...] = ()


class Events(Section, frozen=True, kw_only=True):
    """What the event log must prove. Patterns are regular expressions (RE2) of the whole text."""

    secure_boot: bool | None = None
    pk: Digests | None = msgspec.field(default=None, name="PK")
    kek: Digests | None = msgspec.field(default=None, name="KEK")
    db: Digests | None = None
    dbx: Digests | None = None
    mok_list: Digests | None = msgspec.field(default=None, name="MokList")
    mok_list_x: Digests | None = msgspec.field(default=None, name="MokListX")
    sbat_level: Digests | None = msgspec.field(default=None, name="SbatLevel")
    authorities: Digests | None = None
    drivers: Digests | None = None
    images: Digests | None = None
    files: Digests | None = None
    command_line: tuple[str, ...] | None = None
    firmware_version: tuple[str, ...] | None = None


class TpmFirmware(Section, frozen=True, kw_only=True):
    """A version is the TPM's firmwareVersion, 64 bits in hex: `0x` and the two words that tpm2_getcap prints."""

    minimum: str = ""
    allow: tuple[str, ...] = ()


class Ima(Section, frozen=True, kw_only=True):
    """`allow` has hashes (`sha256:…`) by path. Paths of files are relative to the policy's folder."""

    allow: hcl.Body | None = None
    allow_file: str = ""
    exclude: tuple[str, ...] = ()
    signed_by: tuple[str, ...] = ()
    violations: Violations = "refuse"


class Policy(Section, frozen=True, kw_only=True):
    """`pcr` has one value or several, in hex, by register. A node must keep all rules of the policy."""

    selectors: tuple[str, ...] = ()
    pcr: hcl.Body | None = None
    events: Events | None = None
    tpm_firmware: TpmFirmware | None = None
    ima: Ima | None = None


class File(Section, frozen=True, kw_only=True):
    policy: Mapping[str, Policy]
