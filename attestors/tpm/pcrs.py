"""Platform configuration registers: banks, values, and how they are extended (TPM 2.0 Library, part 1, 11.4)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

BANKS: Final[Mapping[str, int]] = MappingProxyType({"sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64})
"""Sizes of digests in bytes, by the names that policies and tpm2-tools use."""
COUNT: Final = 24
IMA_PCR: Final = 10


@dataclass(frozen=True, slots=True)
class PcrValues:
    """Values of one bank, by register."""

    bank: str
    values: Mapping[int, bytes]

    def composite(self) -> bytes:
        """The concatenation of the values in the registers' order, whose digest a quote has (part 2, 10.12.1)."""
        return b"".join(self.values[number] for number in sorted(self.values))


def initial(bank: str, number: int, locality: int = 0) -> bytes:
    """A register's value after a reset. `locality` is that of TPM2_Startup, which PCR 0 begins with."""
    size = BANKS[bank]
    if 17 <= number <= 22:  # no dynamic launch yet
        return b"\xff" * size
    return (locality if number == 0 else 0).to_bytes(size)


def extend(bank: str, value: bytes, digests: Iterable[bytes]) -> bytes:
    """The register's value after each of the digests was extended into it."""
    for digest in digests:
        value = hashlib.new(bank, value + digest, usedforsecurity=False).digest()
    return value
