from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from tests.simulators.echo import CHAT, UNARY, Echo, EchoService, echo, payload_of, text_of
from transport.client import Channel
from transport.limits import Limits
from transport.peer import Process
from transport.server import Server
from transport.shares import Callers, Share, Shares, Turn
from transport.status import Code, RpcError


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


def test_who_has_next_to_nothing_finds_some_though_others_came_after_its_user() -> None:
    """Two of whom took of what the first had left, so that it is over its half of the rest."""
    shares = Shares(10_000)
    attackers = [shares.of(process(1, uid)) for uid in (1, 2, 3)]
    assert [fill(share) for share in attackers] == [3333, 2222, 1481]
    assert fill(shares.of(process(2, 1))) == 10
    assert not any(share.fits() for share in attackers)


def test_any_number_of_processes_with_next_to_nothing_leaves_others_some() -> None:
    shares = Shares(10_000)
    held = [[shares.of(process(pid, uid)) for pid in range(2000)] for uid in range(3)]
    assert [sum(fill(share) for share in crowd) for crowd in held] == [5000, 2500, 1249]
    assert fill(shares.of(process(0, 4))) > 400


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


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's own process is one like any other."""
    monkeypatch.setattr("transport.shares.os.getpid", lambda: 0)


@asynccontextmanager
async def serving(service: EchoService, folder: Path, limits: Limits) -> AsyncGenerator[str, None]:
    server = Server(service.router(), limits=limits)
    path = str(folder / "api.sock")
    await server.listen_unix(path, mode=0o700)
    try:
        yield path
    finally:
        await server.drain(0)


@pytest.mark.usefixtures("stranger")
async def test_a_call_too_many_is_refused_until_another_has_ended(service: EchoService, tmp_path: Path) -> None:
    async with (
        serving(service, tmp_path, Limits(calls=9)) as path,
        Channel.unix(path) as channel,
        AsyncExitStack() as calls,
        asyncio.timeout(30),
    ):
        for number in range(3):
            call = await calls.enter_async_context(channel.bidi(CHAT, Echo))
            await call.send(echo(str(number)))
            assert await call.recv() is not None
        with pytest.raises(
            RpcError, match="too many calls are open: this process holds 3, its user 3, all 3 of 9"
        ) as caught:
            await channel.unary(UNARY, echo(), Echo)
        assert caught.value.code is Code.RESOURCE_EXHAUSTED
        await calls.aclose()
        while True:
            try:
                assert text_of(await channel.unary(UNARY, echo("hello"), Echo)) == "hello"
            except RpcError:
                await asyncio.sleep(0.01)  # the ends of the others are on their way
            else:
                break


@pytest.mark.usefixtures("stranger")
async def test_a_connection_too_many_is_told_why(service: EchoService, tmp_path: Path) -> None:
    async with serving(service, tmp_path, Limits(connections=9)) as path, AsyncExitStack() as channels:
        for _ in range(3):
            channel = await channels.enter_async_context(Channel.unix(path))
            await channel.unary(UNARY, echo(), Echo, timeout=30)
        one_more = await channels.enter_async_context(Channel.unix(path))
        with pytest.raises(RpcError, match="too many connections are open: this process holds 3") as caught:
            await one_more.unary(UNARY, echo(), Echo, timeout=30)
        assert caught.value.code is Code.UNAVAILABLE


@pytest.mark.usefixtures("stranger")
async def test_requests_that_take_too_much_are_refused(service: EchoService, tmp_path: Path) -> None:
    limits = Limits(received=300_000)
    async with serving(service, tmp_path, limits) as path, Channel.unix(path) as channel:
        with pytest.raises(RpcError, match="too many bytes wait to be read") as caught:
            await channel.unary(UNARY, echo(payload=bytes(200_000)), Echo, timeout=30)
        assert caught.value.code is Code.RESOURCE_EXHAUSTED
        answer = await channel.unary(UNARY, echo(payload=bytes(50_000)), Echo, timeout=30)
        assert len(payload_of(answer)) == 50_000
