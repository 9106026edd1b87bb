"""Every kind of call, over Unix sockets and mutual TLS, with our client and our server."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf.message import Message

from tests.simulators.echo import CHAT, COLLECT, FETCH, UNARY, Echo, EchoService, count_of, echo, text_of
from tests.simulators.svids import self_signed
from transport.client import Channel
from transport.server import Server
from transport.status import Code, RpcError
from transport.tls import client_context, server_context


@pytest.fixture(params=["unix", "tcp"])
async def channel(request: pytest.FixtureRequest, service: EchoService, tmp_path: Path) -> AsyncIterator[Channel]:
    server = Server(service.router())
    if request.param == "unix":
        path = str(tmp_path / "api.sock")
        await server.listen_unix(path, mode=0o700)
        made = Channel.unix(path)
    else:
        context = server_context(self_signed("spiffe://example.org/spire/server"))
        port = await server.listen_tcp("127.0.0.1", 0, lambda: context)
        ours = client_context(self_signed("spiffe://example.org/agent"))
        made = Channel.tcp("127.0.0.1", port, lambda: ours, lambda chain: None)
    async with made as opened:
        yield opened
    await server.drain(5)


async def several(count: int) -> AsyncIterator[Message]:
    for number in range(count):
        yield echo(text=str(number))


async def test_unary(channel: Channel) -> None:
    answer = await channel.unary(UNARY, echo("hello"), Echo)
    assert text_of(answer) == "hello"


async def test_server_stream(channel: Channel) -> None:
    answers = [count_of(each) async for each in channel.server_stream(FETCH, echo("x", 20), Echo)]
    assert answers == list(range(20))


async def test_client_stream(channel: Channel) -> None:
    answer = await channel.client_stream(COLLECT, several(5), Echo)
    assert text_of(answer) == "0,1,2,3,4"


async def test_bidi(channel: Channel) -> None:
    async with channel.bidi(CHAT, Echo) as stream:
        for number in range(5):
            await stream.send(echo(str(number)))
            answer = await stream.recv()
            assert answer is not None
            assert text_of(answer) == str(number)
        await stream.close_send()
        assert await stream.recv() is None


async def test_an_error_of_the_tree_becomes_a_status(channel: Channel) -> None:
    with pytest.raises(RpcError) as caught:
        await channel.unary(UNARY, echo("not found"), Echo)
    assert (caught.value.code, caught.value.message) == (Code.NOT_FOUND, "no such thing: ü 100%")


async def test_a_unix_caller_is_known(service: EchoService, tmp_path: Path) -> None:
    server = Server(service.router())
    path = str(tmp_path / "api.sock")
    await server.listen_unix(path, mode=0o700)
    async with Channel.unix(path) as channel:
        await channel.unary(UNARY, echo(), Echo)
    await server.drain(5)
    process = service.peers[0].process
    assert process is not None
    assert (process.pid, process.uid, process.gid) == (os.getpid(), os.getuid(), os.getgid())
