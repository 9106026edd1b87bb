"""The list's first entry: a digest over the registers of the boot before the kernel, which binds the list to it."""

from __future__ import annotations

import hashlib
from typing import Final

from attestors.tpm.ima.model import ImaEntry
from attestors.tpm.pcrs import PcrValues
from operations.errors import Refused

NAME: Final = "boot_aggregate"
_FORMS = (range(10), range(8))
"""Linux has PCRs 8 and 9 in it since 5.8, except in a digest by SHA-1 (ima_calc_boot_aggregate_tfm)."""


def verify(entry: ImaEntry, quoted: PcrValues) -> None:
    """Raise Refused unless the entry, a list's first one, is the digest over the quoted registers.

    The digest is by the bank's algorithm: the kernel takes the bank that ima_hash= names, else SHA-256, else SHA-1.
    """
    if entry.path != NAME or entry.violation:
        raise Refused(f"IMA list: it begins with {entry.path[:64]!r} instead of {NAME}")
    if entry.algorithm != quoted.bank:
        raise Refused(
            f"IMA list: its {NAME} is of the bank {entry.algorithm}, the quote of {quoted.bank}: boot the kernel with"
            f" ima_hash={quoted.bank} and another template than ima, or set pcr_bank"
        )
    missing = sorted(set(_FORMS[-1]) - set(quoted.values))
    if missing:
        raise Refused(f"IMA list: its {NAME} needs PCRs 0 to 7, and PCR {missing[0]} was not quoted")
    for form in _FORMS:
        if set(form) <= set(quoted.values):
            data = b"".join(quoted.values[number] for number in form)
            if hashlib.new(quoted.bank, data, usedforsecurity=False).digest() == entry.digest:
                return
    raise Refused(f"IMA list: its {NAME} is not over the quoted PCRs 0 to 9: it is of another boot")
