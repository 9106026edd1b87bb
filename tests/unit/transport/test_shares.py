from __future__ import annotations

import asyncio
import os

from transport.limits import Limits
from transport.peer import Process
from transport.shares import Callers, Share, Shares, Turn


def process(pid: int, uid: int = 1) -> Process:
    return Process(pid, uid, uid, 1)


def fill(share: Share) -> int:
    """All that it may have."""
    while share.fits():
        share.take()
    return share.held


def test_a_process_has_a_third_and_its_user_a_half() -> None:
    shares = Shares(10_000)
    crowd = [shares.of(process(pid)) for pid in range(20)]
    held = [fill(share) for share in crowd]
    assert held[:3] == [3333, 1111, 370]
    assert sum(held) == shares.used <= 5000


def test_whoever_comes_later_finds_some() -> None:
    shares = Shares(10_000)
    everybody: list[Share] = []
    for uid in range(8):
        crowd = [shares.of(process(pid, uid)) for pid in range(10)]
        assert fill(crowd[0]) >= 13
        for share in crowd[1:]:
            fill(share)
        everybody += crowd
    assert shares.used < 10_000


def test_what_is_given_back_is_free() -> None:
    shares = Shares(90)
    one, other = shares.of(process(1)), shares.of(process(2, 2))
    assert fill(one) == 30
    assert not one.fits()
    assert other.fits(20)
    one.take(-30)
    assert one.fits(30)
    assert not one.fits(31)
    assert str(one) == "this process holds 0, its user 0, all 0 of 90"


def test_a_process_is_forgotten_with_who_keeps_its_share() -> None:
    shares = Shares(90)
    share = shares.of(process(1))
    assert shares.of(process(1)) is share
    share.take(5)
    share.take(-5)
    del share
    assert shares.of(process(1)).fits(30)


def test_our_own_process_is_not_bounded_by_others() -> None:
    callers = Callers(Limits(connections=9))
    assert callers.of(Process(os.getpid(), 0, 0, 1)) is None
    held = callers.of(process(1))
    assert held is not None
    assert callers.full(1) is None
    fill(held.connections)
    assert callers.full(1) is held.connections
    assert callers.full(2) is None


async def test_reads_of_a_process_take_turns() -> None:
    turn = Turn()
    read: list[int] = []

    def ready(number: int) -> None:
        if turn.take(lambda: ready(number)):
            read.append(number)

    for number in range(30):
        ready(number)
    assert read == list(range(4))
    await asyncio.sleep(0)
    assert read == list(range(8))
    for _ in range(6):
        await asyncio.sleep(0)
    assert read == list(range(30))


async def test_connections_that_closed_meanwhile_do_not_hold_up_the_others() -> None:
    turn = Turn()
    read: list[int] = []
    for number in range(40):
        # Those that wait are closed when it is their turn, but the last.
        if turn.take((lambda: None) if number < 39 else (lambda: read.append(39))):
            read.append(number)
    for _ in range(12):
        await asyncio.sleep(0)
    assert read == [*range(4), 39]
