"""Calls of every kind that are cancelled, time out and meet servers that come and go: nothing hangs, nothing stays."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.simulators.echo import CHAT, COLLECT, FETCH, UNARY, Echo, EchoService, count_of, echo, payload_of, text_of
from tests.simulators.svids import self_signed
from transport.client import Channel
from transport.client_connection import ClientConnection
from transport.connection import Stream
from transport.limits import Limits
from transport.server import Server
from transport.server_connection import ServerConnection
from transport.status import Code, RpcError
from transport.tls import client_context, server_context

EXPECTED = {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.CANCELLED}
LIMITS = Limits(connection_age=0.15, streams=8, stream_window=16 * 1024)
IDENTITY = self_signed("spiffe://example.org/spire/server")


async def unary(channel: Channel, chance: random.Random) -> None:
    payload = bytes(chance.randrange(100_000))
    answer = await channel.unary(UNARY, echo("hello", payload=payload), Echo, timeout=chance.uniform(0.001, 1))
    assert payload_of(answer) == payload


async def fetch(channel: Channel, chance: random.Random) -> None:
    stream = channel.server_stream(FETCH, echo("x", 20, bytes(chance.randrange(20_000))), Echo, timeout=1)
    stop = chance.randrange(40)
    seen = 0
    async for message in stream:
        assert count_of(message) == seen
        seen += 1
        if seen > stop:
            break
    await stream.aclose()


async def wait_for_ever(channel: Channel, chance: random.Random) -> None:
    await channel.unary(UNARY, echo("wait"), Echo, timeout=chance.uniform(0.001, 0.2))


async def chat(channel: Channel, chance: random.Random) -> None:
    async with channel.bidi(CHAT, Echo, timeout=1) as stream:
        for number in range(chance.randrange(10)):
            await stream.send(echo(str(number), payload=bytes(chance.randrange(50_000))))
            answer = await stream.recv()
            assert answer is not None
            assert text_of(answer) == str(number)
        if chance.random() < 0.5:
            await stream.close_send()
            assert await stream.recv() is None


async def half_closed(channel: Channel, chance: random.Random) -> None:
    async with channel.bidi(COLLECT, Echo, timeout=1) as stream:
        for number in range(5):
            await stream.send(echo(str(number), payload=bytes(10_000)))
        await stream.close_send()
        answer = await stream.recv()
        assert answer is not None
        assert count_of(answer) == 5


KINDS = [unary, fetch, wait_for_ever, chat, half_closed]


async def client(channel: Channel, chance: random.Random, until: float, good: list[int]) -> None:
    loop = asyncio.get_running_loop()
    while loop.time() < until:
        call = asyncio.create_task(chance.choice(KINDS)(channel, chance))
        if chance.random() < 0.2:
            await asyncio.sleep(chance.uniform(0, 0.01))
            call.cancel()
        await asyncio.wait([call])
        error = None if call.cancelled() else call.exception()
        if error is None:
            good[0] += 1
        elif not isinstance(error, RpcError) or error.code not in EXPECTED:
            raise error
        else:
            await asyncio.sleep(0.01)


async def settled(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)
            gc.collect()


@pytest.mark.parametrize("kind", ["unix", "tls"])
async def test_nothing_hangs_and_nothing_stays(service: EchoService, tmp_path: Path, kind: str) -> None:
    before = asyncio.all_tasks()
    path = str(tmp_path / "api.sock")
    context, ours = server_context(IDENTITY), client_context(None)
    port = 0

    async def serve() -> Server:
        nonlocal port
        server = Server(service.router(), limits=LIMITS)
        if kind == "unix":
            await server.listen_unix(path, mode=0o700)
        else:
            port = await server.listen_tcp("127.0.0.1", port, lambda: context)
        return server

    server = await serve()
    channels = [
        Channel.unix(path) if kind == "unix" else Channel.tcp("127.0.0.1", port, lambda: ours, lambda chain: None)
        for _ in range(3)
    ]
    until = asyncio.get_running_loop().time() + 1.5
    good = [0]
    clients = [asyncio.create_task(client(channels[n % 3], random.Random(n), until, good)) for n in range(24)]
    while asyncio.get_running_loop().time() < until:
        await asyncio.sleep(0.3)
        await server.drain(0.2)
        server = await serve()
    async with asyncio.timeout(30):
        await asyncio.gather(*clients)
    for channel in channels:
        await channel.close()
    await server.drain(1)
    assert good[0] > 50
    await settled(lambda: asyncio.all_tasks() == before)
    kinds = ClientConnection | ServerConnection | Stream
    await settled(lambda: not any(isinstance(each, kinds) for each in gc.get_objects()))
