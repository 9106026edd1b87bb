"""Evidence as a file: what a node sent, kept so that a policy can be made of it, or tried against it, later."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from attestors.tpm import pcrs as registers
from attestors.tpm.pcrs import PcrValues
from operations import documents, files
from operations.errors import ConfigurationError, InvalidArgument
from operations.quoting import quote

VERSION: Final = 1
FILE_LIMIT: Final = 128 << 20
"""Bytes."""


class Evidence(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A JSON document, bytes in base64. `taken_at` is in unix seconds, `pcrs` by number in `bank`.

    `quote` is a TPMS_ATTEST, `signature` a TPMT_SIGNATURE by `ak_public` (TPM2B_PUBLIC) over `nonce`; all are empty
    where nobody quoted. `selectors` are those of the node's identity (`ek:…`), without the type.
    """

    version: int = VERSION
    taken_at: int
    agent_id: str = ""
    selectors: tuple[str, ...] = ()
    bank: str
    pcrs: dict[int, bytes]
    tpm_firmware: int = 0
    nonce: bytes = b""
    quote: bytes = b""
    signature: bytes = b""
    ak_public: bytes = b""
    event_log: bytes = b""
    ima: bytes = b""

    def __post_init__(self) -> None:
        """Raises InvalidArgument."""
        if self.version != VERSION:
            raise InvalidArgument(f"evidence of version {self.version}: this program reads version {VERSION}")
        size = registers.BANKS.get(self.bank)
        if size is None:
            raise InvalidArgument(f"unknown PCR bank {quote(self.bank)}: use one of {', '.join(registers.BANKS)}")
        for number, value in self.pcrs.items():
            if not 0 <= number < registers.COUNT:
                raise InvalidArgument(f"there is no PCR {number}: they are 0 to {registers.COUNT - 1}")
            if len(value) != size:
                raise InvalidArgument(f"PCR {number} has {len(value)} bytes, not the {size} of {self.bank}")

    @property
    def values(self) -> PcrValues:
        return PcrValues(self.bank, self.pcrs)


def read(path: str | os.PathLike[str]) -> Evidence:
    """Blocks. Raises ConfigurationError, which names the file."""
    name = os.fspath(path)
    try:
        with Path(path).open("rb") as file:
            data = file.read(FILE_LIMIT + 1)
    except OSError as error:
        raise ConfigurationError(f"cannot read the evidence: {error.strerror}", file=name) from error
    if len(data) > FILE_LIMIT:
        raise ConfigurationError(f"longer than {FILE_LIMIT >> 20} MiB: no evidence is", file=name)
    try:
        return documents.decode(data, Evidence)
    except InvalidArgument as error:
        raise ConfigurationError(f"no evidence of a TPM: {error}", file=name) from error


def write(path: str | os.PathLike[str], evidence: Evidence) -> None:
    """Replace the file atomically. Blocks. Raises ConfigurationError, which names the file.

    It is evidence, no secret; but it tells all that a machine runs, and so the mode is 0600.
    """
    name = os.fspath(path)
    data = msgspec.json.encode(evidence)
    if len(data) > FILE_LIMIT:
        raise ConfigurationError(f"the evidence is longer than {FILE_LIMIT >> 20} MiB", file=name)
    try:
        files.write_atomically(path, data)
    except OSError as error:
        raise ConfigurationError(f"cannot write the evidence: {error.strerror}", file=name) from error
