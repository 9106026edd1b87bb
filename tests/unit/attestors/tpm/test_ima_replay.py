"""IMA lists of real kernels, of each template, and altered ones, held against PCR 10."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestors.tpm.ima import aggregate, records, replay, templates
from attestors.tpm.ima.model import ImaEntry, Prefix, Replayed
from attestors.tpm.pcrs import BANKS, IMA_PCR, PcrValues
from operations.errors import InvalidArgument, Refused
from tests.simulators import ima_lists
from tests.simulators.booted import GOLDEN, MACHINES, Boot, registers

ALL = sorted(folder.name for folder in MACHINES.iterdir() if (folder / "ima").exists())
DIGEST = hashlib.sha256(b"file").digest()
LIST = Boot.of(later=True).ima
QUOTED = registers(GOLDEN, "sha256", later=True).values[IMA_PCR]
START = Prefix()


def own(data: bytes, bank: str = "sha256") -> bytes:
    """PCR 10 after a list without violations, by a kernel since 5.8."""
    return ima_lists.replayed(bank, [hashlib.new(bank, records.hashed(r)).digest() for r in records.scan(data)])


def whole() -> Replayed:
    return replay.replay(LIST, START, QUOTED, "sha256")


@pytest.mark.parametrize("machine", ALL)
@pytest.mark.parametrize("bank", ["sha1", "sha256"])
def test_lists_of_machines_replay_and_grow(machine: str, bank: str) -> None:
    data, more = Boot.of(machine).ima, Boot.of(machine, later=True).ima
    first, later = (registers(machine, bank, later=state) for state in (False, True))
    found = replay.replay(data, START, first.values[IMA_PCR], bank)
    assert found.prefix == Prefix(entries=len(found.entries), size=len(data), value=first.values[IMA_PCR])
    # The list grew between the quote and its reading; and a renewal sends what is new.
    assert replay.replay(more, START, first.values[IMA_PCR], bank) == found
    rest = replay.replay(more[len(data) :], found.prefix, later.values[IMA_PCR], bank)
    assert rest.prefix == Prefix(entries=found.prefix.entries + 54, size=len(more), value=later.values[IMA_PCR])
    assert found.entries + rest.entries == replay.replay(more, START, later.values[IMA_PCR], bank).entries
    assert [entry.path for entry in rest.entries if entry.violation] == ["/srv/notes"]
    assert {"/usr/bin/later", "/srv/a_name_with_spaces", "/srv/many/149"} <= {entry.path for entry in rest.entries}
    # Nothing new.
    assert replay.replay(b"", rest.prefix, later.values[IMA_PCR], bank) == Replayed((), rest.prefix)


@pytest.mark.parametrize("machine", ALL)
def test_lists_begin_with_the_boot_before_them(machine: str) -> None:
    bank = "sha1" if machine == "seabios" else "sha256"
    quoted = registers(machine, bank)
    first = replay.replay(Boot.of(machine).ima, START, quoted.values[IMA_PCR], bank).entries[0]
    aggregate.verify(first, quoted)
    for number in range(8 if bank == "sha1" else 10):
        other = PcrValues(bank, {**quoted.values, number: bytes(BANKS[bank])})
        if other != quoted:
            with pytest.raises(Refused, match="another boot"):
                aggregate.verify(first, other)


def test_boot_aggregates_of_older_kernels_are_over_eight_registers() -> None:
    quoted = PcrValues("sha256", {number: bytes([number]) * 32 for number in range(10)})
    short, long = (hashlib.sha256(b"".join(quoted.values[n] for n in range(count))).digest() for count in (8, 10))
    for digest in (short, long):
        aggregate.verify(ImaEntry(10, "ima-ng", "sha256", digest, "boot_aggregate"), quoted)
    without = PcrValues("sha256", {number: quoted.values[number] for number in range(8)})
    aggregate.verify(ImaEntry(10, "ima-ng", "sha256", short, "boot_aggregate"), without)
    with pytest.raises(Refused, match="another boot"):
        aggregate.verify(ImaEntry(10, "ima-ng", "sha256", long, "boot_aggregate"), without)


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (ImaEntry(10, "ima-ng", "sha256", DIGEST, "/init"), "begins with '/init' instead of boot_aggregate"),
        (ImaEntry(10, "ima-ng", "sha256", DIGEST, "boot_aggregate", None, violation=True), "begins with"),
        (ImaEntry(10, "ima", "sha1", bytes(20), "boot_aggregate"), "bank sha1, the quote of sha256: boot the kernel"),
        (ImaEntry(10, "ima-ng", "sha256", DIGEST, "boot_aggregate"), "PCR 3 was not quoted"),
    ],
)
def test_boot_aggregate_refusals_teach(entry: ImaEntry, why: str) -> None:
    with pytest.raises(Refused, match=why):
        aggregate.verify(entry, PcrValues("sha256", {number: bytes(32) for number in (0, 1, 2, 4, 5, 6, 7)}))


TEMPLATES = [
    (ima_lists.original("/init", DIGEST[:20]), ("ima", "sha1", "/init", None)),
    (ima_lists.entry("/init", DIGEST, b"s"), ("ima-sig", "sha256", "/init", b"s")),
    (ima_lists.entry("/init", DIGEST), ("ima-sig", "sha256", "/init", None)),
    *(
        (ima_lists.framed(name, ima_lists.fields(prefix + b":\0" + digest, b"/init\0", *more)), (name.decode(), *value))
        for name, prefix, digest, more, value in (
            (b"ima-ng", b"sha1", DIGEST[:20], (), ("sha1", "/init", None)),
            (b"ima-ngv2", b"ima:sha256", DIGEST, (), ("sha256", "/init", None)),
            (b"ima-ngv2", b"verity:sha256", DIGEST, (), ("verity:sha256", "/init", None)),
            (b"ima-sigv2", b"verity:sha512", DIGEST * 2, (b"s",), ("verity:sha512", "/init", b"s")),
            (b"ima-buf", b"sha256", DIGEST, (b"buffer",), ("sha256", "/init", None)),
            (b"ima-modsig", b"sha256", DIGEST, (b"s", b"", b"m"), ("sha256", "/init", b"s")),
            (b"evm-sig", b"sha256", DIGEST, (b"evm", *[b""] * 6), ("sha256", "/init", None)),
            # A kernel's that is not known here, and one given as a format.
            (b"ima-later", b"sha3-256", DIGEST, (b"x", b"y"), ("sha3-256", "/init", None)),
            (b"d-ng|n-ng|iuid|sig", b"sha256", DIGEST, (b"\0\0", b"s"), ("sha256", "/init", b"s")),
        )
    ),
    (ima_lists.entry("/srv/\xff \n", DIGEST), ("ima-sig", "sha256", "/srv/\xff \n", None)),
    (
        ima_lists.framed(b"ima-ng", ima_lists.fields(b"sha256:\0" + DIGEST, b"/srv/\xff\0")),
        ("ima-ng", "sha256", "/srv/\\xff", None),
    ),
]


@pytest.mark.parametrize(("data", "expected"), TEMPLATES, ids=[f"{n}-{v[0]}" for n, (_, v) in enumerate(TEMPLATES)])
@pytest.mark.parametrize("bank", BANKS)
def test_templates(data: bytes, expected: tuple[str, str, str, bytes | None], bank: str) -> None:
    (entry,) = replay.replay(data, START, own(data, bank), bank).entries
    assert (entry.template, entry.algorithm, entry.path, entry.signature) == expected
    assert entry.pcr == IMA_PCR
    assert not entry.violation
    assert entry.digest == (DIGEST * 2)[: len(entry.digest)]


@pytest.mark.parametrize(
    ("template", "data", "why"),
    [
        (b"ima-ng", ima_lists.fields(b"sha256:\0" + DIGEST), "does not begin with a digest and a path"),
        (b"ima-later", b"", "does not begin with a digest and a path"),
        (b"n-ng|d-ng", ima_lists.fields(b"/a\0", b"sha256:\0" + DIGEST), "have it begin with d-ng|n-ng"),
        (b"ima-later", ima_lists.fields(DIGEST, b"/a\0"), "is no digest by an algorithm"),
        (b"ima-ng", ima_lists.fields(b"sha256:\0" + DIGEST, b"/a\0b\0"), "with a zero in it"),
        (b"ima-ng", ima_lists.fields(b"sha256:\0" + DIGEST, b"/" * 4097), "a path of 4097 bytes"),
        (b"ima-ng", ima_lists.fields(b"sha256:\0" + DIGEST[:20], b"/a\0"), "a digest of 20 bytes by sha256"),
        (b"ima-ng", ima_lists.fields(b"crc32:\0abcd", b"/a\0"), "is no digest by an algorithm"),
        (b"ima-ng", ima_lists.fields(b"sha256:\0" + DIGEST)[:-1], "a field is longer"),
        (b"ima-ng", b"\0", "no fields"),
        (b"ima-sig", ima_lists.fields(*[b""] * 33), "no fields"),
    ],
)
def test_entries_that_are_not_what_their_template_says(template: bytes, data: bytes, why: str) -> None:
    lies = ima_lists.entry("/a", DIGEST) + ima_lists.framed(template, data)
    with pytest.raises(InvalidArgument, match=rf"^IMA list: entry 1 \(.*{why}"):
        replay.replay(lies, START, own(lies), "sha256")


def _extended(how: str, data: bytes, size: int) -> list[bytes]:
    """What kernels extend a bank with: by its own hash, or by SHA-1; violations are ones."""
    ones = {"own": size, "padded": 20, "half": size}[how] * b"\xff"
    return [
        ones
        if record.digest == records.VIOLATION
        else record.digest
        if how != "own"
        else hashlib.new({32: "sha256", 48: "sha384", 64: "sha512"}[size], record.data).digest()
        for record in records.scan(data)
    ]


@pytest.mark.parametrize("how", ["own", "padded", "half"])
@pytest.mark.parametrize("bank", ["sha256", "sha384", "sha512"])
def test_kernels_extend_by_the_banks_hash_or_pad_sha1(how: str, bank: str) -> None:
    data = ima_lists.entry("/a", DIGEST) + ima_lists.violation("/b") + ima_lists.entry("/c", DIGEST)
    quoted = ima_lists.replayed(bank, _extended(how, data, BANKS[bank]))
    found = replay.replay(data, START, quoted, bank)
    assert [(entry.path, entry.violation) for entry in found.entries] == [("/a", False), ("/b", True), ("/c", False)]


@pytest.mark.parametrize("mixed", [("own", "padded"), ("padded", "own"), ("own", "half"), ("half", "padded")])
def test_kernels_ways_are_never_mixed(mixed: tuple[str, str]) -> None:
    data = ima_lists.entry("/a", DIGEST) + ima_lists.violation("/b")
    data += data
    first, second = (_extended(how, data, 32) for how in mixed)
    quoted = ima_lists.replayed("sha256", first[:2] + second[2:])
    with pytest.raises(Refused, match="no beginning of it replays"):
        replay.replay(data, START, quoted, "sha256")


def test_nothing_measured_is_the_beginning() -> None:
    assert replay.replay(LIST, START, bytes(32), "sha256") == Replayed((), Prefix(value=bytes(32)))


def _pieces(data: bytes) -> list[bytes]:
    ends = [record.end for record in records.scan(data)]
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def test_altered_lists_are_refused() -> None:
    pieces = _pieces(LIST)
    chosen = random.Random(7)
    for number in chosen.sample(range(len(pieces)), 20):
        without = pieces[:number] + pieces[number + 1 :]
        twice = [*pieces[:number], pieces[number], *pieces[number:]]
        swapped = [*pieces[:number], *reversed(pieces[number : number + 2]), *pieces[number + 2 :]]
        other = [*pieces[:number], ima_lists.entry("/usr/bin/harmless", DIGEST), *pieces[number + 1 :]]
        for altered in (without, twice, swapped, other):
            if altered != pieces:
                with pytest.raises(Refused, match="no beginning of it replays"):
                    replay.replay(b"".join(altered), START, QUOTED, "sha256")


def test_data_that_are_not_what_was_hashed_are_refused() -> None:
    digest = hashlib.sha1(b"other data", usedforsecurity=False).digest()
    lie = ima_lists.framed(b"ima-sig", ima_lists.fields(b"sha256:\0" + DIGEST, b"/a\0", b""), digest=digest)
    for bank in BANKS:
        with pytest.raises(Refused, match="entry 1 is not that of its data"):
            replay.replay(ima_lists.entry("/b", DIGEST) + lie, START, bytes([1]) * BANKS[bank], bank)
    # An entry that calls itself a violation to have its data believed.
    hidden = ima_lists.framed(b"ima-sig", ima_lists.fields(b"sha256:\0" + DIGEST, b"/a\0", b""), digest=bytes(20))
    with pytest.raises(Refused, match="no beginning of it replays"):
        replay.replay(hidden, START, own(ima_lists.entry("/a", DIGEST)), "sha256")


def test_no_name_of_a_template_makes_something_else_of_an_entry() -> None:
    good = b"sha256:\0" + hashlib.sha256(b"good").digest()
    # What a bad file carries in security.ima is in the list, as its third field.
    data = ima_lists.fields(b"sha256:\0" + DIGEST, b"/bad\0", good)
    honest = ima_lists.framed(b"ima-sig", data)
    for name in (
        b"ima-ng",
        b"ima-buf",
        b"x|n-ng|d-ng",
        b"d-ng|x|n-ng",
        b"sig|n-ng|d-ng",
        b"d-ngv2|n-ng|d",
        b"sig",
        b"?",
    ):
        (entry,) = replay.replay(ima_lists.framed(name, data), START, own(honest), "sha256").entries
        assert (entry.digest, entry.path) == (DIGEST, "/bad")
        assert entry.signature in (None, good)


def test_lists_cut_short_have_no_such_state() -> None:
    for size in range(len(LIST) - 400, len(LIST)):
        with pytest.raises(Refused, match="no beginning of it replays"):
            replay.replay(LIST[:size], START, QUOTED, "sha256")
    for extra in (b"\x0a\0\0\0", b"\xff" * 1000, LIST[:50], bytes(1000)):
        assert replay.replay(LIST + extra, START, QUOTED, "sha256") == whole()


def test_lists_of_another_boot_or_bank_are_refused() -> None:
    for machine in ALL:
        if machine != GOLDEN:
            with pytest.raises(Refused, match="of another boot"):
                replay.replay(Boot.of(machine).ima, START, registers(GOLDEN, "sha256").values[IMA_PCR], "sha256")
    found = whole().prefix
    with pytest.raises(Refused):
        replay.replay(LIST, found, own(ima_lists.entry("/a", DIGEST)), "sha256")
    for bank, quoted in (("sha1", QUOTED), ("sha256", QUOTED[:20]), ("md5", QUOTED[:16]), ("sha256", b"")):
        with pytest.raises(InvalidArgument, match="another size"):
            replay.replay(LIST, START, quoted, bank)
    with pytest.raises(InvalidArgument, match="another size"):
        replay.replay(LIST, Prefix(value=bytes(20)), QUOTED, "sha256")


def test_entries_of_other_registers_are_refused() -> None:
    data = ima_lists.framed(b"ima-ng", ima_lists.fields(b"sha256:\0" + DIGEST, b"/a\0"), pcr=11)
    with pytest.raises(Refused, match=r"entry 0 is in PCR 11; take pcr= out"):
        replay.replay(data, START, own(data), "sha256")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (bytes(28), "its template's name has 0 bytes"),
        (b"\xff" * 100, "its template's name has 4294967295 bytes"),
        (b"10 91f34b5c671d73504b274a919661cf80dab1e127 ima-ng sha1:1801e1be", "Is it binary_runtime_measurements"),
        (ima_lists.framed(b"ima-ng", b"")[:-4] + b"\xff\xff\xff\x7f", "more than 1048576"),
        (ima_lists.framed(b"ima", bytes(16) + b"\xff\xff\xff\x7f"), "more than 1048576"),
    ],
)
def test_what_is_no_list_says_so(data: bytes, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        replay.replay(data, START, QUOTED, "sha256")


def test_lists_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidArgument, match="67108864 bytes that a list may have; reboot"):
        replay.replay(bytes((64 << 20) + 1), START, QUOTED, "sha256")
    with pytest.raises(InvalidArgument, match="67108864 bytes"):
        replay.replay(LIST, Prefix(entries=1, size=64 << 20, value=bytes(32)), QUOTED, "sha256")
    monkeypatch.setattr(records, "ENTRIES_LIMIT", 60)
    with pytest.raises(InvalidArgument, match="more than the 60 entries"):
        whole()
    with pytest.raises(InvalidArgument, match="more than the 60 entries"):
        replay.replay(LIST, Prefix(entries=40, size=9, value=bytes(32)), QUOTED, "sha256")


@given(st.data())
def test_altered_bytes_never_change_what_is_believed(data: st.DataObject) -> None:
    expected = whole()
    altered = bytearray(LIST)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(altered) - 1))
        altered[start : start + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=40))
    try:
        found = replay.replay(bytes(altered), START, QUOTED, "sha256")
    except (Refused, InvalidArgument):
        return
    # No PCR proves what a violation says of itself.
    assert found.prefix.entries == expected.prefix.entries
    for one, other in zip(found.entries, expected.entries, strict=True):
        assert one.violation == other.violation
        assert one.violation or (one.digest, one.path, one.pcr) == (other.digest, other.path, IMA_PCR)


@given(st.binary(max_size=400), st.sampled_from(list(BANKS)), st.binary(min_size=64, max_size=64))
def test_garbage_is_refused(data: bytes, bank: str, quoted: bytes) -> None:
    with pytest.raises((Refused, InvalidArgument)):
        replay.replay(data, START, b"\1" + quoted[1 : BANKS[bank]], bank)


@given(st.sampled_from([b"ima-ng", b"ima-sig", b"ima-x", b"d-ng|n-ng", b"d|n", b"|", b"\xff"]), st.binary(max_size=99))
def test_entries_of_garbage_are_refused_or_read(template: bytes, data: bytes) -> None:
    for record in records.scan(ima_lists.framed(template, data)):
        try:
            entry = templates.entry(record, 0)
        except InvalidArgument:
            continue
        assert len(entry.digest) == templates.DIGEST_SIZES[entry.algorithm.removeprefix("verity:")]
