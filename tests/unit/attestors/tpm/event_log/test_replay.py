"""What a log comes to, and what is said where that is not what was quoted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import pytest

from attestors.tpm.event_log.model import REGISTERS
from attestors.tpm.event_log.parser import parse
from attestors.tpm.event_log.replay import replay, verify
from attestors.tpm.pcrs import PcrValues
from operations.errors import Refused
from tests.simulators.event_log import ACTION, IPL, EventLogBuilder, booted

OTHER = hashlib.sha256(b"another").digest()


def quoted(builder: EventLogBuilder, changes: Mapping[int, bytes] | None = None, bank: str = "sha256") -> PcrValues:
    return PcrValues(bank, {**builder.pcrs(bank).values, **(changes or {})})


@pytest.mark.parametrize("bank", ["sha1", "sha256", "sha384", "sha512"])
def test_a_boot_replays_in_every_bank(bank: str) -> None:
    builder = booted(banks=("sha1", "sha256", "sha384", "sha512"))
    log = parse(builder.build())
    verify(log, builder.pcrs(bank))
    values = replay(log, bank).values
    assert sorted(values) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14]
    assert values == {number: builder.pcrs(bank).values[number] for number in values}


@pytest.mark.parametrize("locality", [0, 3, 4])
def test_pcr_0_begins_with_the_startup_locality(locality: int) -> None:
    builder = EventLogBuilder(locality=locality).separators(0, 1)
    verify(parse(builder.build()), builder.pcrs())
    other = EventLogBuilder(locality=3 if locality != 3 else 4).separators(0, 1)
    with pytest.raises(Refused, match=r"PCR 0 \(sha256\) does not replay"):
        verify(parse(builder.build()), other.pcrs())


@pytest.mark.parametrize("number", sorted(REGISTERS))
def test_each_register_must_replay(number: int) -> None:
    builder = booted()
    with pytest.raises(Refused, match=rf"^event log: PCR {number} \(sha256\) does not replay") as caught:
        verify(parse(builder.build()), quoted(builder, {number: OTHER}))
    assert OTHER[:8].hex() in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_first_one_that_does_not_replay_is_named() -> None:
    builder = booted()
    with pytest.raises(Refused, match="PCR 2 "):
        verify(parse(builder.build()), quoted(builder, {9: OTHER, 2: OTHER, 4: OTHER}))


@pytest.mark.parametrize("number", [6, 12])
def test_a_register_without_an_event_is_as_a_reset_leaves_it(number: int) -> None:
    builder = EventLogBuilder().separators(0)
    verify(parse(builder.build()), builder.pcrs())
    with pytest.raises(Refused, match=rf"PCR {number} .*the log has no event for it"):
        verify(parse(builder.build()), quoted(builder, {number: OTHER}))


@pytest.mark.parametrize("number", [10, 11, 13, 15, 16, 23])
def test_registers_that_others_extend_are_theirs(number: int) -> None:
    """IMA's, and those that systemd extends while the system runs, whether or not the log has the beginning."""
    for builder in (booted(), booted().extend(number, IPL, b".linux")):
        verify(parse(builder.build()), quoted(builder, {number: OTHER}))


@pytest.mark.parametrize("number", sorted(REGISTERS))
def test_without_a_quote_of_all_that_facts_are_read_from_nothing_is_believed(number: int) -> None:
    """Else events of it could be written, or left out, as it pleases."""
    builder = booted()
    values = {each: value for each, value in builder.pcrs().values.items() if each != number}
    with pytest.raises(Refused, match=rf"not believed without a quote of PCRs {number};"):
        verify(parse(builder.build()), PcrValues("sha256", values))


def test_a_bank_that_the_log_has_not() -> None:
    builder = booted(banks=("sha1", "sha384"))
    log = parse(builder.build())
    for refusing in (lambda: replay(log, "sha256"), lambda: verify(log, booted().pcrs())):
        with pytest.raises(Refused, match="no digests of the sha256 bank, but of sha1, sha384; set pcr_bank"):
            refusing()


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_a_log_that_is_cut_short(cut: int) -> None:
    builder = EventLogBuilder().separators(0).extend(4, ACTION, b"first")
    before = len(builder.records)
    for number in range(cut):
        builder.extend(4, ACTION, b"%d" % number)
    data = b"".join(builder.records[:before])
    with pytest.raises(Refused, match=r"PCR 4 .*its 1 events come to .*cut short \(a full buffer"):
        verify(parse(data), builder.pcrs())


def test_events_that_were_never_extended() -> None:
    builder = booted()
    values = builder.pcrs()
    builder.image("\\more", b"one").image("\\more", b"two")
    with pytest.raises(Refused, match=r"PCR 4 .*the last 2 of its 7 events in the log were never extended"):
        verify(parse(builder.build()), values)


@pytest.mark.parametrize(
    "texts",
    [
        ("Exit Boot Services Invocation", "Exit Boot Services Returned with Success"),
        (
            "Exit Boot Services Invocation",
            "Exit Boot Services Returned with Failure",
            "Exit Boot Services Invocation",
            "Exit Boot Services Returned with Success",
        ),
        (
            "Exit Boot Services Invocation",
            "Exit Boot Services Returned with Failure",
            "Exit Boot Services Returned with Success",
        ),
    ],
    ids=["success", "at the second call", "in the second try"],
)
def test_a_log_may_end_before_boot_services_do(texts: tuple[str, ...]) -> None:
    builder = EventLogBuilder().separators(0, 4, 5)
    data = builder.build()
    for text in texts:
        builder.extend(5, ACTION, text.encode())
    verify(parse(data), builder.pcrs())
    verify(parse(builder.build()), builder.pcrs())


def test_nothing_but_that_is_added_to_pcr_5() -> None:
    builder = EventLogBuilder().separators(0, 4, 5)
    data = builder.build()
    builder.extend(5, ACTION, b"Exit Boot Services Invocation").extend(5, ACTION, b"something else")
    with pytest.raises(Refused, match=r"PCR 5 .*hands over to the kernel"):
        verify(parse(data), builder.pcrs())


def test_two_events_that_change_places() -> None:
    builder = booted()
    records = list(builder.records)
    records[-1], records[-2] = records[-2], records[-1]
    with pytest.raises(Refused, match="PCR 5 "):
        verify(parse(b"".join(records)), builder.pcrs())
