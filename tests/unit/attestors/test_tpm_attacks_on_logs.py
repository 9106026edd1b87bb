"""What a node may try with its logs and its clock: each single try is refused, and the table is printed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from attestors.tpm.messages import Activate, Ask, Part, Proof
from operations.errors import InvalidArgument, Refused
from tests.simulators.attacks import Ground, Proving, Setup
from tests.simulators.measured_boot import IPL, SEPARATOR, MeasuredBoot
from tests.simulators.soft_tpm import SoftTpm
from tests.simulators.tpm_node import TpmNode

HUGE = 64 << 20
Listing = Callable[[bytes, list[int]], bytes]


@pytest.fixture
async def ground(tmp_path: Path) -> Ground:
    made = Ground(tmp_path)
    await made.start()
    return made


async def test_event_logs(ground: Ground) -> None:
    kind = "an event log that does not replay"

    def logged(change: Callable[[bytes], bytes]) -> Setup:
        return lambda node: setattr(node.boot, "event_log", change(node.boot.event_log))

    def parts(change: Callable[[list[bytes]], list[bytes]]) -> Setup:
        return lambda node: setattr(node.boot, "event_log", b"".join(change(list(node.boot.events))))

    def unmeasured(pcr: int) -> Setup:
        def setup(node: TpmNode) -> None:
            apart = MeasuredBoot(SoftTpm())
            apart.measure(pcr, IPL, b"never extended")
            node.boot.event_log += apart.events[-1]

        return setup

    def of_another(node: TpmNode) -> None:
        apart = MeasuredBoot(SoftTpm())
        apart.boot(command_line="single")
        node.boot.event_log = apart.event_log

    attacks: tuple[tuple[str, Setup], ...] = (
        ("without its first event", parts(lambda events: events[:1] + events[2:])),
        ("without the last event", parts(lambda events: events[:-1])),
        ("two events exchanged", parts(lambda events: [*events[:2], events[3], events[2], *events[4:]])),
        ("an event twice", parts(lambda events: [*events, events[2]])),
        ("an event that was not extended", unmeasured(4)),
        ("an event in a register without any", unmeasured(12)),
        ("something measured that it does not tell", lambda node: node.tpm.extend(4, {"sha256": bytes(32)})),
        ("of another machine", of_another),
        ("a header alone", parts(lambda events: events[:1])),
        ("zeros", logged(lambda log: bytes(len(log)))),
        ("cut in an event", logged(lambda log: log[:-3])),
        ("a text", logged(lambda _: b"what a log! " * 99)),
        ("a separator's digests for another event", parts(lambda events: [*events[:-1], events[-2]])),
    )
    for what, setup in attacks:
        await ground.attack(kind, what, "event log", setup=setup)
    await ground.end()


async def test_bits_of_an_event_log(ground: Ground) -> None:
    """Each is refused, or changes nothing: of banks that nobody quoted, and of data that no digest proves."""
    honest = await _selectors(ground, ground.node())
    size = len(ground.node().boot.event_log)
    refused = 0
    for at in range(0, size, 29):
        node = ground.node()
        log = node.boot.event_log
        node.boot.event_log = log[:at] + bytes((log[at] ^ 1,)) + log[at + 1 :]
        try:
            assert await _selectors(ground, node) <= honest, f"bit in byte {at}"
        except (Refused, InvalidArgument):
            refused += 1
    assert refused > size // 29 // 10


async def _selectors(ground: Ground, node: TpmNode) -> set[str]:
    return {each.value for each in (await ground.attesting.attest(node)).selectors}


async def test_ima_lists(ground: Ground) -> None:
    kind = "an IMA list with something amiss"

    def listed(change: Listing) -> Setup:
        def setup(node: TpmNode) -> None:
            for number in range(20):
                node.boot.run(f"/usr/bin/{number}")
            node.boot.ima = change(node.boot.ima, node.boot.sizes)

        return setup

    def exchanged(ima: bytes, at: list[int]) -> bytes:
        return ima[: at[4]] + ima[at[5] : at[6]] + ima[at[4] : at[5]] + ima[at[6] :]

    def of_another_boot(_ima: bytes, _sizes: list[int]) -> bytes:
        apart = TpmNode().started()
        return apart.boot.ima

    digest = hashlib.sha256(b"/usr/bin/7").digest()
    attacks: tuple[tuple[str, Listing], ...] = (
        ("cut after an entry", lambda ima, sizes: ima[: sizes[-2]]),
        ("cut in an entry", lambda ima, _: ima[:-5]),
        ("without an entry", lambda ima, sizes: ima[: sizes[5]] + ima[sizes[6] :]),
        ("without its first entry", lambda ima, sizes: ima[sizes[0] :]),
        ("entries exchanged", exchanged),
        ("an entry twice", lambda ima, sizes: ima[: sizes[5]] + ima[sizes[4] :]),
        ("another path", lambda ima, _: ima.replace(b"/usr/bin/7", b"/usr/bin/x")),
        ("another digest", lambda ima, _: ima.replace(digest, bytes(32))),
        ("an entry in another register", lambda ima, sizes: ima[: sizes[5]] + b"\x0b" + ima[sizes[5] + 1 :]),
        ("zeros", lambda ima, _: bytes(len(ima))),
        ("of another boot", of_another_boot),
    )
    for what, change in attacks:
        await ground.attack(kind, what, "IMA list", setup=listed(change))

    def foreign(node: TpmNode) -> None:
        node.boot.ima, node.boot.sizes = b"", []
        node.tpm.pcrs["sha256"][10] = bytes(32)
        node.boot.run("boot_aggregate", bytes(32))
        node.boot.run("/usr/bin/sh")

    await ground.attack(kind, "with the aggregate of another boot", "boot_aggregate", setup=foreign)
    await ground.attack(kind, "with a file that is not allowed", "/opt/x", setup=lambda node: node.boot.run("/opt/x"))
    await ground.end()


async def test_what_follows_a_verified_prefix(ground: Ground) -> None:
    node = ground.node()
    await ground.attesting.attest(node)
    whole = node.boot.ima
    for what, change in (
        ("without its beginning", lambda data: data[len(data) // 2 :]),
        ("nothing", lambda _: b""),
        ("the whole list", lambda _: whole),
        ("zeros", lambda data: bytes(len(data))),
    ):
        node.boot.run("/usr/bin/x")
        node.boot.run("/usr/bin/y")
        node.alter_part = _changed(change)
        kind = "what follows a verified prefix"
        await ground.table.attack(kind, what, "IMA list", lambda: ground.attesting.attest(node))
        assert [ask[:2] for ask in node.asked_for] == [("ima", len(whole)), ("event_log", 0), ("ima", 0)]
    node.boot.run("/opt/x")
    node.alter_part = lambda part, _: part
    await ground.table.attack("what follows a verified prefix", "", "/opt/x", lambda: ground.attesting.attest(node))
    await ground.end()


def _changed(change: Callable[[bytes], bytes]) -> Callable[[Part, Ask], Part]:
    return lambda part, ask: Part(data=change(part.data)[: ask.size]) if ask.log == "ima" else part


async def test_sizes(ground: Ground) -> None:
    kind = "logs of 64 MiB"

    def announced(name: str, size: int) -> Proving:
        def prove(_node: TpmNode, made: Proof, _asked: Activate) -> Proof:
            return replace(made, **{name: size})

        return prove

    for name in ("event_log_size", "ima_size"):
        for size in (HUGE, 1 << 40, (1 << 63) - 1):
            await ground.attack(kind, name, f" {size} bytes", proof=announced(name, size))
    for more in (1, 100, 2 << 20):
        extra = bytes(more)
        await ground.attack(kind, f"{more} bytes more than asked for", "Part: ", part=_longer(extra))
    await ground.end()


def _longer(extra: bytes) -> Callable[[Part, Ask], Part]:
    return lambda part, _: Part(data=part.data + extra)


async def test_logs_that_hide_in_others_registers(ground: Ground) -> None:
    """A separator in the place of what was measured, with the register as it would be: the policy's PCR tells."""

    def setup(node: TpmNode) -> None:
        node.tpm.reset()
        node.boot = MeasuredBoot(node.tpm)
        node.boot.measure(4, SEPARATOR, bytes(4))
        node.boot.aggregate()

    await ground.attack("another boot chain", "no loader", "PCR 4", setup=setup)
    await ground.attack("another boot chain", "another loader", "PCR 4", setup=lambda node: node.reboot(b"evil"))
    await ground.end()


async def test_clocks(ground: Ground) -> None:
    kind = "a TPM that went back in time"
    attacks: tuple[tuple[str, int, int], ...] = (
        ("its clock", 3_600_000, 1),
        ("its reset counter", 0, 5),
        ("both, as after TPM2_Clear", 10**9, 10**3),
    )
    for what, earlier, resets in attacks:
        clock, count = ground.tpm.clock, ground.tpm.reset_count
        await ground.attack(kind, what, "went back", setup=_back(clock - earlier, count - resets + 1))
        ground.tpm.clock, ground.tpm.reset_count = clock, count
    await ground.end()


def _back(clock: int, reset_count: int) -> Setup:
    def setup(node: TpmNode) -> None:
        node.tpm.clock, node.tpm.reset_count = max(clock, 0), max(reset_count, 0)

    return setup
