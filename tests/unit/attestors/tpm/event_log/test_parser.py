"""Both forms of logs, what firmware does to them, and what is refused, with the place."""

from __future__ import annotations

import struct
import tracemalloc

import pytest

from attestors.tpm.event_log.parser import EVENT_LIMIT, SIZE_LIMIT, parse
from operations.errors import InvalidArgument
from tests.simulators.event_log import ACTION, ALGORITHMS, EventLogBuilder, booted

SPEC_ID = b"Spec ID Event03\0"


def legacy(pcr: int, kind: int, data: bytes, size: int | None = None) -> bytes:
    return struct.pack("<II", pcr, kind) + bytes(20) + struct.pack("<I", len(data) if size is None else size) + data


def header(algorithms: list[tuple[int, int]], *, count: int | None = None, vendor: bytes = b"\0") -> bytes:
    listed = b"".join(struct.pack("<HH", *each) for each in algorithms)
    fixed = SPEC_ID + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, len(algorithms) if count is None else count)
    return legacy(0, 3, fixed + listed + vendor)


def agile(pcr: int, kind: int, digests: list[tuple[int, bytes]], data: bytes, *, count: int | None = None) -> bytes:
    listed = b"".join(struct.pack("<H", identifier) + digest for identifier, digest in digests)
    number = len(digests) if count is None else count
    return struct.pack("<III", pcr, kind, number) + listed + struct.pack("<I", len(data)) + data


def test_a_crypto_agile_log() -> None:
    log = parse(EventLogBuilder(("sha1", "sha256", "sha384")).extend(4, ACTION, b"text").build())
    assert log.banks == ("sha1", "sha256", "sha384")
    header_event, event = log.events
    assert (header_event.index, header_event.type) == (0, 3)
    assert (event.index, event.pcr, event.type, event.data) == (1, 4, ACTION, b"text")
    assert {bank: len(digest) for bank, digest in event.digests.items()} == {"sha1": 20, "sha256": 32, "sha384": 48}


def test_a_log_of_sha1_alone() -> None:
    log = parse(EventLogBuilder(agile=False).extend(4, ACTION, b"text").separators(4).build())
    assert log.banks == ("sha1",)
    assert [(event.index, event.data) for event in log.events] == [(0, b"text"), (1, bytes(4))]


@pytest.mark.parametrize("version", [b"00", b"02"])
def test_a_header_of_tpm_1_2_is_an_event_that_says_nothing(version: bytes) -> None:
    """TCG_PCClientSpecIDEventStruct, and TCG_EfiSpecIdEventStruct of SHA-1 logs."""
    log = parse(legacy(0, 3, b"Spec ID Event" + version + b"\0" + bytes(9)) + legacy(4, ACTION, b"x"))
    assert (log.banks, len(log.events)) == (("sha1",), 2)


def test_a_bank_is_one_that_every_event_has_a_digest_for() -> None:
    builder = EventLogBuilder(("sha1", "sha256"))
    builder.no_action(b"says nothing").records.append(agile(0, 3, [], b"without a digest"))
    builder.record(4, ACTION, b"text", {"sha256": bytes(32)})
    assert parse(builder.build()).banks == ("sha256",)


def test_algorithms_that_are_not_known_are_passed_over() -> None:
    data = header([(0x0012, 32), (0x000B, 32), (0x0027, 64)])
    data += agile(1, ACTION, [(0x0027, b"\1" * 64), (0x000B, b"\2" * 32), (0x0012, b"\3" * 32)], b"text")
    log = parse(data)
    assert log.banks == ("sha256",)
    assert log.events[1].digests == {"sha256": b"\2" * 32}


def test_a_log_of_unknown_algorithms_alone_has_no_bank() -> None:
    assert parse(header([(0x0012, 32)]) + agile(1, ACTION, [(0x0012, bytes(32))], b"")).banks == ()


@pytest.mark.parametrize("information", [b"", b"vendor"])
def test_vendor_information(information: bytes) -> None:
    assert len(parse(EventLogBuilder(vendor=information).separators(4).build()).events) == 2


def test_vendor_information_that_the_size_leaves_out() -> None:
    """As in tpm2-tools' own fixture: the header's size ends with the byte that says how much comes."""
    data = header([(0x000B, 32)], vendor=b"\4") + b"\xde\xad\xbe\xef" + agile(4, ACTION, [(0x000B, bytes(32))], b"x")
    assert parse(data).events[1].data == b"x"


@pytest.mark.parametrize("filler", [b"\0", b"\xff"])
@pytest.mark.parametrize("agile_log", [True, False])
def test_the_room_behind_a_log_is_none_of_it(filler: bytes, agile_log: bool) -> None:
    """The whole area that the firmware reserved, as it lies in memory. Data may end as the area goes on."""
    builder = EventLogBuilder(agile=agile_log).extend(4, ACTION, b"ends in" + filler * 40)
    bare = parse(builder.build())
    for size in (1, 3, 31, 32, 33, 65536):
        assert parse(builder.build() + filler * size) == bare


def test_what_else_follows_a_log_is_refused() -> None:
    data = booted().build()
    with pytest.raises(InvalidArgument, match=rf"event 32, at byte {len(data)}: wants"):
        parse(data + b"garbage")


@pytest.mark.parametrize("locality", [0, 3, 4])
def test_startup_locality(locality: int) -> None:
    assert parse(EventLogBuilder(locality=locality).build()).locality == locality


@pytest.mark.parametrize("told", [b"", b"\1", b"\5", b"\3\0", b"\xff"])
def test_a_startup_locality_that_is_none(told: bytes) -> None:
    with pytest.raises(InvalidArgument, match="event 1: a startup locality"):
        parse(EventLogBuilder().no_action(b"StartupLocality\0" + told).build())


def test_two_startup_localities() -> None:
    builder = EventLogBuilder(locality=3)
    assert parse(builder.no_action(b"StartupLocality\0\3").build()).locality == 3
    with pytest.raises(InvalidArgument, match=r"startup localities \[0, 3\]"):
        parse(builder.no_action(b"StartupLocality\0\0").build())


def test_events_without_an_action_may_name_no_register_and_have_any_data() -> None:
    builder = EventLogBuilder().no_action(b"").no_action(b"S").no_action(b"SP800-155 Event\0", pcr=0xFFFFFFFF)
    assert len(parse(builder.build()).events) == 4


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (bytes(70000), "empty"),
        (b"\xff" * 70000, "empty"),
        (b"\1", "event 0, at byte 0: wants 8 bytes where 1 are left"),
        (legacy(0, 3, b"StartupLocality\0\3"), "event 0, at byte 0: an EV_NO_ACTION event that is no Spec ID event"),
        (legacy(0, 8, SPEC_ID), "a Spec ID event that is not of type EV_NO_ACTION"),
        (legacy(0, 3, SPEC_ID), "0 algorithms"),
        (header([], count=0), "0 algorithms: there are 1 to 16"),
        (header([], count=0xFFFFFFFF), "4294967295 algorithms"),
        (header([(11, 32)], count=2), "ends within its 2 algorithms"),
        (header([(11, 32)], vendor=b""), "ends within its 1 algorithms"),
        (header([(11, 32), (11, 32)]), "algorithm 0x000b"),
        (header([(11, 20)]), "algorithm 0x000b"),
        (header([(0x12, 0)]), "algorithm 0x0012"),
        (header([(0x12, 0xFFFF)]), "algorithm 0x0012"),
        (header([(11, 32)], vendor=b"\4ab"), "vendor information of 4 bytes where there are 2"),
        (header([(11, 32)], vendor=b"\4"), "event 0, at byte 0: wants 4 bytes where 0 are left"),
        (legacy(24, ACTION, b"x"), "event 0, at byte 0: PCR 24: there are 24"),
        (legacy(0xFFFFFFFF, ACTION, b"x"), "PCR 4294967295"),
        (legacy(25, 3, b"Spec ID Event03"), "PCR 25"),
        (legacy(4, ACTION, b"text", size=0xFFFFFFF0), "event 0, at byte 0: wants 4294967280 bytes where 4 are left"),
        (header([(11, 32)]) + agile(4, 1, [], b"x", count=2), "event 1, at byte 65: 2 digests"),
        (header([(11, 32)]) + agile(4, 1, [], b"x", count=0xFFFFFFFF), "4294967295 digests"),
        (header([(11, 32)]) + agile(4, 1, [(12, bytes(48))], b"x"), "a digest of algorithm 0x000c"),
        (header([(11, 32), (4, 20)]) + agile(4, 1, [(11, bytes(32))] * 2, b"x"), "algorithm 0x000b: not in the header"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(data)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_cut_of_a_log_is_refused_but_those_between_two_events() -> None:
    data = booted().build()
    whole = parse(data)
    ends = 0
    for size in range(1, len(data)):
        try:
            log = parse(data[:size])
        except InvalidArgument:
            continue
        # Between events, or in the filler-like end of the last one's data or digests.
        assert log.events == whole.events[: len(log.events)]
        ends += 1
    assert len(whole.events) - 1 <= ends < 3 * len(whole.events)


def test_a_log_of_64_mib_is_refused_unread() -> None:
    data = bytes(64 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidArgument, match=f"67108864 bytes, more than the {SIZE_LIMIT}"):
            parse(data)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_log_of_too_many_events_is_refused() -> None:
    one = agile(4, 1, [(ALGORITHMS["sha256"], bytes(32))], b"x")
    head = header([(ALGORITHMS["sha256"], 32)])
    assert len(parse(head + one * (EVENT_LIMIT - 1)).events) == EVENT_LIMIT
    with pytest.raises(InvalidArgument, match=f"more than the {EVENT_LIMIT} events"):
        parse(head + one * EVENT_LIMIT)
