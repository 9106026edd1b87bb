"""The settings of KeyManager "tpm", and what they mean."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from operations.errors import ConfigurationError

DEFAULT_TCTI = "device:/dev/tpmrm0"
_HANDLE = re.compile(r"0x81[0-9a-fA-F]{6}")
_PCRS = re.compile(r"(sha1|sha256|sha384|sha512):(\d{1,2}(?:,\d{1,2})*)")
_PCR_COUNT = 24


class Configuration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`tcti` is any TCTI string. `keys_path` is the folder of wrapped blobs, tpm-keys in the data directory when unset.

    `parent` is "srk" or a persistent handle. `pcrs`, such as "sha256:0,7", binds new keys to the values that these
    PCRs have when the key is made. The owner's authorization is asked for where the TPM has no persistent SRK and its
    owner hierarchy has one. `grace` is a Go duration: how long a replaced blob is kept.
    """

    tcti: str = DEFAULT_TCTI
    keys_path: str | None = None
    parent: str = "srk"
    pcrs: str | None = None
    owner_auth_file: str | None = None
    owner_auth_credential: str | None = None
    parent_auth_file: str | None = None
    parent_auth_credential: str | None = None
    grace: str = "24h"


def tcti(text: str) -> str:
    """Raises ConfigurationError for what cannot be a TCTI: the name is part of a library's file name."""
    name, _, _ = text.partition(":")
    if not re.fullmatch(r"[a-z0-9_-]+", name) or "\0" in text:
        raise ConfigurationError(f'tcti: {text!r} is no TCTI, which is a name and its options: "{DEFAULT_TCTI}"')
    return text


def handle(text: str, setting: str) -> int:
    """A persistent handle (TPM 2.0 Library, part 2, 7.2). Raises ConfigurationError."""
    if not _HANDLE.fullmatch(text):
        raise ConfigurationError(f'{setting}: {text!r} is no persistent handle, which has the form "0x81000001"')
    return int(text, 16)


def parent(text: str) -> int | None:
    """The persistent handle, or None for the SRK. Raises ConfigurationError."""
    if text == "srk":
        return None
    try:
        return handle(text, "parent")
    except ConfigurationError as error:
        raise ConfigurationError(f'{error.reason}, nor "srk"') from error


def pcrs(text: str | None) -> str | None:
    """The selection in its one form: numbers ascending, each once. Raises ConfigurationError."""
    if text is None:
        return None
    match = _PCRS.fullmatch(text)
    numbers = sorted({int(number) for number in match[2].split(",")}) if match else []
    if match is None or numbers[-1] >= _PCR_COUNT:
        raise ConfigurationError(f'pcrs: {text!r} is no bank and its PCRs, 0 to {_PCR_COUNT - 1}: "sha256:0,7"')
    return f"{match[1]}:{','.join(map(str, numbers))}"


def pcr_selection(text: str) -> tuple[str, tuple[int, ...]]:
    """Bank and numbers of a selection in its one form."""
    bank, _, numbers = text.partition(":")
    return bank, tuple(int(number) for number in numbers.split(","))


def keys_path(configuration: Configuration, data_dir: str | None) -> Path:
    if configuration.keys_path:
        return Path(configuration.keys_path)
    if data_dir:
        return Path(data_dir) / "tpm-keys"
    raise ConfigurationError("tpm: set keys_path, the folder of the keys' wrapped blobs")
