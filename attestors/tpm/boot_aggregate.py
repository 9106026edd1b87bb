"""The first entry of an IMA list: the state of the boot before it (Linux, security/integrity/ima/ima_init.c)."""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from attestors.tpm.ima.model import ImaEntry
from attestors.tpm.pcrs import PcrValues
from operations.errors import Refused

_NAME: Final = "boot_aggregate"
_REGISTERS: Final = (range(10), range(8))
"""Since Linux 5.9 with what the kernel and its loader measured, before without it."""


def require(entry: ImaEntry, pcrs: PcrValues) -> None:
    """Raise Refused unless the entry is the aggregate of the quoted registers: the list is of this boot."""
    if entry.path != _NAME:
        raise Refused(f"the IMA list begins with {entry.path!r}, not with {_NAME}: it is not whole")
    if entry.algorithm != pcrs.bank:
        raise Refused(
            f"the IMA list's {_NAME} is in {entry.algorithm}, while PCRs are quoted in {pcrs.bank}: "
            f"start the kernel with ima_hash={pcrs.bank}, or set pcr_bank"
        )
    for registers in _REGISTERS:
        values = [pcrs.values[number] for number in registers if number in pcrs.values]
        if len(values) != len(registers):
            raise Refused(f"the IMA list's {_NAME} cannot be checked: PCRs 0 to 9 were not all quoted")
        if hmac.compare_digest(hashlib.new(pcrs.bank, b"".join(values)).digest(), entry.digest):
            return
    raise Refused(f"the IMA list's {_NAME} is not that of the quoted PCRs: it is of another boot")
