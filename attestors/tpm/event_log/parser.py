"""Event logs in the TCG's binary form, as /sys/kernel/security/tpm0/binary_bios_measurements has them.

Two forms: of TPM 1.2, SHA-1 alone (TCG_PCClientPCREvent), and crypto-agile (TCG_PCR_EVENT2 after a Spec ID event
that names the banks). TCG PC Client Platform Firmware Profile 1.06, 10.2. Numbers are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Final

from attestors.tpm.event_log.event_types import NO_ACTION
from attestors.tpm.event_log.model import Event, EventLog
from attestors.tpm.pcrs import BANKS, COUNT
from operations.errors import InvalidArgument

SIZE_LIMIT: Final = 4 << 20
"""Bytes. Firmware reserves 64 KiB to 1 MiB."""
EVENT_LIMIT: Final = 1 << 14
"""Machines have 30 to 300."""
ALGORITHM_LIMIT: Final = 16
DIGEST_LIMIT: Final = 128
"""Bytes of a digest of an algorithm that is not known here."""

_ALGORITHMS: Final[Mapping[int, str]] = {0x0004: "sha1", 0x000B: "sha256", 0x000C: "sha384", 0x000D: "sha512"}
_SHA1: Final = 0x0004
_HEAD: Final = struct.Struct("<II")
_WORD: Final = struct.Struct("<I")
_ALGORITHM: Final = struct.Struct("<HH")
_ALGORITHM_ID: Final = struct.Struct("<H")

_SPEC_ID: Final = b"Spec ID Event"
_AGILE_SPEC_ID: Final = b"Spec ID Event03\0"
_SPEC_ID_FIXED: Final = 24
"""Bytes before the number of algorithms: signature, platform class, versions, and the size of UINTN."""
_LOCALITY: Final = b"StartupLocality\0"
_LOCALITIES: Final = (0, 3, 4)
_NO_REGISTER: Final = 0xFFFFFFFF
"""What EV_NO_ACTION events of a platform's identity, and Windows', name instead of a register."""


def parse(data: bytes) -> EventLog:
    """The log of `data`. Raises InvalidArgument, with the event's index and offset in bytes, for what is none.

    A log may come with the room behind it that its firmware has reserved, in zeros or ones.
    """
    if len(data) > SIZE_LIMIT:
        raise InvalidArgument(f"event log: {len(data)} bytes, more than the {SIZE_LIMIT} that one may have")
    if not data.strip(b"\0\xff"):
        raise InvalidArgument("event log: empty; see that the kernel has /sys/kernel/security/tpm0")
    reader = _Reader(data)
    first = reader.legacy_event(0)
    if first.type == NO_ACTION and not first.data.startswith(_SPEC_ID):
        # A log of TPM 1.2 need not have a header, but nothing of the kind comes before one.
        raise InvalidArgument("event log: event 0, at byte 0: an EV_NO_ACTION event that is no Spec ID event")
    sizes = _sizes(first, reader) if first.data.startswith(_AGILE_SPEC_ID) else None
    events = (first, *reader.events(sizes))
    return EventLog(banks=_banks(events, sizes), events=events, locality=_locality(events))


def _sizes(header: Event, reader: _Reader) -> dict[int, int]:
    """Sizes of digests, by the algorithms' identifiers (TCG_EfiSpecIdEvent)."""
    data, at = header.data, _SPEC_ID_FIXED
    if header.type != NO_ACTION:
        raise reader.wrong(0, 0, "a Spec ID event that is not of type EV_NO_ACTION")
    count = _WORD.unpack_from(data, at)[0] if len(data) >= at + _WORD.size else 0
    at += _WORD.size
    if not 0 < count <= ALGORITHM_LIMIT:
        raise reader.wrong(0, 0, f"{count} algorithms: there are 1 to {ALGORITHM_LIMIT}")
    if len(data) < at + count * _ALGORITHM.size + 1:
        raise reader.wrong(0, 0, f"the Spec ID event ends within its {count} algorithms")
    sizes: dict[int, int] = {}
    for identifier, size in _ALGORITHM.iter_unpack(data[at : at + count * _ALGORITHM.size]):
        name = _ALGORITHMS.get(identifier)
        if identifier in sizes or not 0 < size <= DIGEST_LIMIT or (name and size != BANKS[name]):
            raise reader.wrong(
                0, 0, f"algorithm {identifier:#06x}, digests of {size} bytes: listed twice or impossible"
            )
        sizes[identifier] = size
    at += count * _ALGORITHM.size
    _skip_vendor_information(data, at, reader)
    return sizes


def _skip_vendor_information(data: bytes, at: int, reader: _Reader) -> None:
    """Some firmware leaves the vendor's information out of the event's size, and has it behind the event."""
    size, there = data[at], len(data) - at - 1
    if there == 0 and size:
        reader.skip(0, size)
    elif there != size:
        raise reader.wrong(0, 0, f"vendor information of {size} bytes where there are {there}")


def _banks(events: tuple[Event, ...], sizes: Mapping[int, int] | None) -> tuple[str, ...]:
    """Those that every event which was extended has a digest for."""
    names = ("sha1",) if sizes is None else tuple(_ALGORITHMS[one] for one in sizes if one in _ALGORITHMS)
    extended = [event for event in events if event.type != NO_ACTION]
    return tuple(name for name in names if all(name in event.digests for event in extended))


def _locality(events: tuple[Event, ...]) -> int:
    """Where TPM2_Startup came from (TCG_EfiStartupLocalityEvent): PCR 0 begins with it."""
    told: set[int] = set()
    for event in events:
        if event.type == NO_ACTION and event.data.startswith(_LOCALITY):
            value = event.data[len(_LOCALITY) :]
            if len(value) != 1 or value[0] not in _LOCALITIES:
                raise InvalidArgument(f"event log: event {event.index}: a startup locality that is none of 0, 3, 4")
            told.add(value[0])
    if len(told) > 1:
        raise InvalidArgument(f"event log: startup localities {sorted(told)}: there is but one")
    return told.pop() if told else 0


class _Reader:
    """A place in the log. Everything that is read is within it, and counted before it is read."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        # Firmware reserves an area for the log (ACPI's LASA and LAML), in zeros, or in ones as memory of
        # confidential machines is; some kernels hand out all of it. An event that was nothing but that would be one
        # of EV_PREBOOT_CERT without a digest, or of PCR 4294967295. What else follows the last event is refused.
        self._end = min(len(data.rstrip(b"\0")), len(data.rstrip(b"\xff")))

    def wrong(self, index: int, offset: int, reason: str) -> InvalidArgument:
        return InvalidArgument(f"event log: event {index}, at byte {offset}: {reason}")

    def events(self, sizes: Mapping[int, int] | None) -> Iterator[Event]:
        """What follows the header; `sizes` of a crypto-agile log."""
        index = 1
        while self._at < self._end:
            if index >= EVENT_LIMIT:
                raise self.wrong(index, self._at, f"more than the {EVENT_LIMIT} events that a log may have")
            yield self.legacy_event(index) if sizes is None else self._agile_event(index, sizes)
            index += 1

    def legacy_event(self, index: int) -> Event:
        start = self._at
        pcr, kind = _HEAD.unpack(self._take(index, start, _HEAD.size))
        digest = self._take(index, start, BANKS["sha1"])
        return self._event(index, start, pcr, kind, {"sha1": digest})

    def _agile_event(self, index: int, sizes: Mapping[int, int]) -> Event:
        start = self._at
        pcr, kind = _HEAD.unpack(self._take(index, start, _HEAD.size))
        count = self._word(index, start)
        if count > len(sizes):
            raise self.wrong(index, start, f"{count} digests where the header has {len(sizes)} algorithms")
        digests: dict[int, bytes] = {}
        for _ in range(count):
            (identifier,) = _ALGORITHM_ID.unpack(self._take(index, start, _ALGORITHM_ID.size))
            if identifier not in sizes or identifier in digests:
                raise self.wrong(index, start, f"a digest of algorithm {identifier:#06x}: not in the header, or twice")
            digests[identifier] = self._take(index, start, sizes[identifier])
        named = {_ALGORITHMS[one]: digest for one, digest in digests.items() if one in _ALGORITHMS}
        return self._event(index, start, pcr, kind, named)

    def _event(self, index: int, start: int, pcr: int, kind: int, digests: Mapping[str, bytes]) -> Event:
        if pcr >= COUNT and not (kind == NO_ACTION and pcr == _NO_REGISTER):
            raise self.wrong(index, start, f"PCR {pcr}: there are {COUNT}")
        data = self._take(index, start, self._word(index, start))
        return Event(index=index, pcr=pcr, type=kind, digests=digests, data=data)

    def skip(self, index: int, size: int) -> None:
        self._take(index, 0, size)

    def _word(self, index: int, start: int) -> int:
        value: int = _WORD.unpack(self._take(index, start, _WORD.size))[0]
        return value

    def _take(self, index: int, start: int, size: int) -> bytes:
        left = len(self._data) - self._at
        if size > left:
            raise self.wrong(index, start, f"wants {size} bytes where {left} are left; the log is cut, or no event log")
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken
