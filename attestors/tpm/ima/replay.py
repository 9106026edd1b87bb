"""A measurement list held against the register that its entries were extended into."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from typing import Protocol

from attestors.tpm.ima import templates
from attestors.tpm.ima.model import Prefix, Replayed
from attestors.tpm.ima.records import SIZE_LIMIT, VIOLATION, Record, hashed, refuse_lie, scan
from attestors.tpm.pcrs import BANKS, IMA_PCR
from operations.errors import InvalidArgument, Refused


class _Hash(Protocol):
    def digest(self) -> bytes: ...


_Extended = Callable[[Record], bytes]
"""What the kernel extended for an entry."""
_HASHES: Mapping[str, Callable[[bytes], _Hash]] = {
    "sha1": partial(hashlib.sha1, usedforsecurity=False),  # what old kernels and banks have; FIPS modes forbid it else
    "sha256": hashlib.sha256,
    "sha384": hashlib.sha384,
    "sha512": hashlib.sha512,
}


def replay(data: bytes, start: Prefix, quoted: bytes, bank: str) -> Replayed:
    """What the list holds up to the quoted value of PCR 10 in `bank`; `data` is the list from `start.size` on.

    The list grows between the quote and its reading: what is behind the first state that was quoted is not looked at.
    Raises Refused when the list has no such state, or its data are not what was hashed; InvalidArgument when it is no
    list.
    """
    if bank not in BANKS or len(quoted) != BANKS[bank] or len(start.value) not in (0, BANKS[bank]):
        raise InvalidArgument(f"PCR {IMA_PCR} of the bank {bank!r} has another size than {len(quoted)} bytes")
    if start.size + len(data) > SIZE_LIMIT:
        raise InvalidArgument(f"IMA list: more than the {SIZE_LIMIT} bytes that a list may have; reboot the machine")
    for extended in _ways(bank):
        if (prefix := _matching(data, start, quoted, bank, extended)) is not None:
            found = islice(scan(data, start.entries), prefix.entries - start.entries)
            entries = tuple(templates.entry(record, number) for number, record in enumerate(found, start.entries))
            return Replayed(entries, prefix)
    raise Refused(
        f"IMA list: no beginning of it replays to the quoted PCR {IMA_PCR} ({bank}): entries are missing, altered or of"
        " another boot, or the kernel was started by kexec and left them behind"
    )


def _matching(data: bytes, start: Prefix, quoted: bytes, bank: str, extended: _Extended) -> Prefix | None:
    """The first beginning after which the register has the quoted value."""
    value = start.value or bytes(BANKS[bank])
    if value == quoted:
        return Prefix(entries=start.entries, size=start.size, value=value)
    algorithm = _HASHES[bank]
    for number, record in enumerate(scan(data, start.entries), start.entries):
        if record.pcr != IMA_PCR:
            raise Refused(f"IMA list: entry {number} is in PCR {record.pcr}; take pcr= out of the machine's IMA policy")
        refuse_lie(record, number)
        value = algorithm(value + extended(record)).digest()
        if value == quoted:
            return Prefix(entries=number + 1, size=start.size + record.end, value=value)
    return None


def _ways(bank: str) -> tuple[_Extended, ...]:
    """How kernels extend a bank, one for a whole boot: by its own hash of the data, or by SHA-1 and zeros behind it.

    The former since Linux 5.8, unless the kernel lacks the algorithm when IMA begins (ima_calc_field_array_hash).
    Violations are ones in all of the bank's bytes; in those of SHA-1 only before Linux 5.8.
    """
    size = BANKS[bank]
    ones, short = b"\xff" * size, (b"\xff" * 20).ljust(size, b"\0")
    new = _HASHES[bank]

    def own(record: Record) -> bytes:
        return ones if record.digest == VIOLATION else new(hashed(record)).digest()

    def padded(record: Record) -> bytes:
        return short if record.digest == VIOLATION else record.digest.ljust(size, b"\0")

    def half(record: Record) -> bytes:
        return ones if record.digest == VIOLATION else record.digest.ljust(size, b"\0")

    return (padded,) if bank == "sha1" else (own, padded, half)
