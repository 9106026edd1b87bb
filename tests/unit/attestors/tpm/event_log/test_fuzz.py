"""Logs that are noise, and logs with a byte changed: refused, or read as no more than they prove."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestors.tpm.event_log.facts import facts
from attestors.tpm.event_log.model import BootFacts
from attestors.tpm.event_log.parser import parse
from attestors.tpm.event_log.replay import replay, verify
from attestors.tpm.pcrs import PcrValues
from operations.errors import InvalidArgument, Refused
from tests.simulators.event_log import IPL, Boot, EventLogBuilder, booted

BOOT = booted(Boot(secure_boot=False, platform_key=b"\x30\x82\0\1k", exchange_keys=(), allowed=(b"\x30\x82\0\1v",)))
DATA = BOOT.build()
QUOTED = BOOT.pcrs()
TRUTH = facts(parse(DATA), "sha256")


def read(data: bytes) -> BootFacts | None:
    """The facts of a log that is one, whether or not it replays."""
    try:
        log = parse(data)
    except InvalidArgument:
        return None
    found = None
    for bank in log.banks:
        replay(log, bank)
        found = facts(log, bank)
    return found


def believed(data: bytes, quoted: PcrValues) -> BootFacts | None:
    """The facts of a log that a server believes."""
    try:
        log = parse(data)
        verify(log, quoted)
    except (InvalidArgument, Refused):
        return None
    return facts(log, quoted.bank)


def changes(data: bytes) -> Iterator[bytes]:
    for place in range(len(data)):
        for value in {0, 0xFF, data[place] ^ (1 << place % 8)} - {data[place]}:
            yield data[:place] + bytes((value,)) + data[place + 1 :]


@given(st.binary(max_size=300))
def test_noise(data: bytes) -> None:
    read(data)


@given(st.binary(max_size=200), st.integers(0, 23), st.integers(0, 0xFFFFFFFF))
def test_noise_behind_a_header(data: bytes, pcr: int, kind: int) -> None:
    read(EventLogBuilder(("sha256",)).build() + data)
    read(EventLogBuilder(("sha256",)).extend(pcr, kind, b"x").build() + data)


KINDS = [0x1, 0x4, 0x5, 0x6, 0x8, 0xD, 0x80000001, 0x80000003, 0x80000007, 0x800000E0]
HASHED = st.one_of(st.none(), st.binary(max_size=20))
EVENTS = st.lists(
    st.tuples(st.sampled_from([0, 2, 4, 7, 8, 9, 12, 14]), st.sampled_from(KINDS), st.binary(max_size=80), HASHED)
)


@given(EVENTS)
def test_events_with_noise_in_them(events: list[tuple[int, int, bytes, bytes | None]]) -> None:
    """They replay, whatever their data are."""
    builder = EventLogBuilder(("sha256",))
    for event in events:
        builder.extend(*event)
    assert believed(builder.build(), builder.pcrs()) is not None


def test_any_byte_changed() -> None:
    """What is still believed is true: no image or file is gone, and what is not told is known to be missing."""
    survived = 0
    for data in changes(DATA):
        found = believed(data, QUOTED)
        if found is None:
            continue
        survived += 1
        assert found.secure_boot is not True
        assert {image.digest for image in TRUTH.images} <= {image.digest for image in found.images}
        assert [file.digest for file in found.files] == [file.digest for file in TRUTH.files]
        assert {*TRUTH.command_lines} <= {*found.command_lines} or found.unproven
        assert found.authorities == TRUTH.authorities or found.unproven or found.doubts
        assert found.firmware_version in (TRUTH.firmware_version, None)
        for name, values in found.variables.items():
            assert TRUTH.variables[name] == values
    assert survived > len(DATA) // 4  # the bytes of types and data, which nothing but the facts depends on


def test_any_byte_changed_in_a_log_of_sha1_alone() -> None:
    builder = EventLogBuilder(agile=False).separators(0, 4).image("\\a.efi", b"image").extend(8, IPL, b"x\0", b"x")
    for data in changes(builder.build()):
        read(data)


@pytest.mark.parametrize("gone", range(1, len(BOOT.records)))
def test_any_event_left_out(gone: int) -> None:
    data = b"".join(record for place, record in enumerate(BOOT.records) if place != gone)
    found = believed(data, QUOTED)
    # The two of ExitBootServices may be missing, but together.
    assert found is None


@pytest.mark.parametrize("twice", range(1, len(BOOT.records)))
def test_any_event_told_twice(twice: int) -> None:
    records = list(BOOT.records)
    records.insert(twice, records[twice])
    assert believed(b"".join(records), QUOTED) is None
