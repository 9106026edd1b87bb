"""Listening, ending, and what a server does not put up with."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import stat
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf.message import Message
from OpenSSL import SSL

from operations.errors import ConfigurationError, TemporarilyUnavailable
from tests.simulators.echo import CHAT, UNARY, Echo, EchoService, echo, text_of
from tests.simulators.svids import self_signed
from transport.client import Bidi, Channel
from transport.connection import Connection
from transport.limits import Limits
from transport.peer import Peer
from transport.router import Context, Method
from transport.server import Server
from transport.status import Code, RpcError
from transport.tls import client_context, server_context


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)


async def test_a_port_in_use_is_named(service: EchoService) -> None:
    context = server_context(self_signed("spiffe://example.org/spire/server"))
    server = Server(service.router())
    port = await server.listen_tcp("127.0.0.1", 0, lambda: context)
    with pytest.raises(TemporarilyUnavailable) as caught:
        await Server(service.router()).listen_tcp("127.0.0.1", port, lambda: context)
    assert str(caught.value) == (
        f"cannot listen on 127.0.0.1:{port}: address already in use; "
        "stop the other process or change bind_address and bind_port"
    )
    await server.drain(1)


async def test_an_address_that_is_not_ours_is_named(service: EchoService) -> None:
    context = server_context(self_signed("spiffe://example.org/spire/server"))
    with pytest.raises(ConfigurationError, match=r"^cannot listen on 192\.0\.2\.1:0: .*; check bind_address"):
        await Server(service.router()).listen_tcp("192.0.2.1", 0, lambda: context)


async def test_a_unix_socket_has_its_mode_and_goes_with_the_server(service: EchoService, tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    server = Server(service.router())
    await server.listen_unix(str(path), mode=0o750)
    assert stat.S_IMODE(path.stat().st_mode) == 0o750
    assert os.listdir(tmp_path) == ["api.sock"]  # noqa: PTH208 - and nothing beside it
    await server.drain(1)
    assert not path.exists()


async def test_a_stale_socket_is_replaced(service: EchoService, tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    server = Server(service.router())
    await server.listen_unix(str(path), mode=0o700)
    async with Channel.unix(str(path)) as channel:
        await channel.unary(UNARY, echo(), Echo)
    await server.drain(1)


async def test_a_live_socket_is_left_alone(service: EchoService, socket_path: str) -> None:
    with pytest.raises(TemporarilyUnavailable, match="another process is listening on"):
        await Server(service.router()).listen_unix(socket_path, mode=0o700)
    async with Channel.unix(socket_path) as channel:
        await channel.unary(UNARY, echo(), Echo)


async def test_a_file_is_not_mistaken_for_a_socket(service: EchoService, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(ConfigurationError, match="is no socket"):
        await Server(service.router()).listen_unix(str(path), mode=0o700)
    assert path.read_text() == "mine"
    with pytest.raises(ConfigurationError, match=r"cannot listen on .*no such file or directory"):
        await Server(service.router()).listen_unix(str(tmp_path / "absent" / "api.sock"), mode=0o700)


async def test_draining_lets_calls_end(service: EchoService, tmp_path: Path) -> None:
    server = Server(service.router())
    path = str(tmp_path / "api.sock")
    await server.listen_unix(path, mode=0o700)
    async with Channel.unix(path) as channel:
        call = asyncio.create_task(channel.unary(UNARY, echo("wait"), Echo))
        await service.started.wait()
        draining = asyncio.create_task(server.drain(30))
        await asyncio.sleep(0.3)  # both GOAWAYs have been sent by then
        assert not draining.done()
        with pytest.raises(RpcError, match="no such file or directory"):
            await channel.unary(UNARY, echo(), Echo)
        service.release.set()
        assert text_of(await call) == "wait"
        await asyncio.wait_for(draining, 25)


async def test_draining_cuts_off_what_does_not_end(service: EchoService, tmp_path: Path) -> None:
    server = Server(service.router())
    path = str(tmp_path / "api.sock")
    await server.listen_unix(path, mode=0o700)
    async with Channel.unix(path) as channel:
        call = asyncio.create_task(channel.unary(UNARY, echo("wait"), Echo))
        await service.started.wait()
        await asyncio.wait_for(server.drain(0.2), 30)
        with pytest.raises(RpcError) as caught:
            await call
    assert caught.value.code is Code.UNAVAILABLE
    assert service.cancelled.is_set()


async def test_an_old_connection_is_ended_between_calls(service: EchoService, tmp_path: Path) -> None:
    server = Server(service.router(), limits=Limits(connection_age=0.3))
    path = str(tmp_path / "api.sock")
    await server.listen_unix(path, mode=0o700)
    async with Channel.unix(path) as channel:
        for number in range(100):
            assert text_of(await channel.unary(UNARY, echo(str(number)), Echo)) == str(number)
            await asyncio.sleep(0.01)
    await server.drain(1)
    assert len({id(peer) for peer in service.peers}) > 1


async def test_connections_have_a_limit(service: EchoService, tmp_path: Path) -> None:
    server = Server(service.router(), limits=Limits(connections=2))
    path = str(tmp_path / "api.sock")
    await server.listen_unix(path, mode=0o700)
    first, second, third = (Channel.unix(path) for _ in range(3))
    await first.unary(UNARY, echo(), Echo)
    await second.unary(UNARY, echo(), Echo)
    with pytest.raises(RpcError) as caught:
        await third.unary(UNARY, echo(), Echo, timeout=0.3)
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    await first.close()
    await third.unary(UNARY, echo(), Echo, timeout=60)
    await second.close()
    await third.close()
    await server.drain(1)


async def test_a_slow_reader_holds_up_only_itself(service: EchoService, channel: Channel) -> None:
    payload = bytes(1024 * 1024)
    async with channel.bidi(CHAT, Echo, timeout=30) as slow:
        sending = asyncio.create_task(send_all(slow, payload, 12))
        await asyncio.sleep(0.2)
        assert not sending.done()
        assert text_of(await channel.unary(UNARY, echo("quick"), Echo)) == "quick"
        for _ in range(12):
            assert await slow.recv() is not None
        await sending
        await slow.close_send()
        assert await slow.recv() is None


async def send_all(stream: Bidi[Message], payload: bytes, count: int) -> None:
    for _ in range(count):
        await stream.send(echo(payload=payload))


async def test_more_streams_than_the_limit_wait_their_turn(service: EchoService, tmp_path: Path) -> None:
    server = Server(service.router(), limits=Limits(streams=4))
    path = str(tmp_path / "api.sock")
    await server.listen_unix(path, mode=0o700)
    async with Channel.unix(path) as channel:
        answers = await asyncio.gather(*(channel.unary(UNARY, echo(str(number)), Echo) for number in range(200)))
    assert [text_of(each) for each in answers] == [str(number) for number in range(200)]
    await server.drain(1)


async def test_closing_a_server_leaves_nothing_behind(service: EchoService, tmp_path: Path) -> None:
    before = asyncio.all_tasks()
    server = Server(service.router())
    path = str(tmp_path / "api.sock")
    await server.listen_unix(path, mode=0o700)
    channel = Channel.unix(path)
    await channel.unary(UNARY, echo(), Echo)
    await channel.close()
    await server.drain(1)
    await until(lambda: asyncio.all_tasks() == before)


async def test_a_closed_connection_is_freed_without_the_collector(service: EchoService, tmp_path: Path) -> None:
    """TLS, HTTP/2 and calls refer to each other; closing takes the cycles apart."""
    context = server_context(self_signed("spiffe://example.org/spire/server"))
    ours = client_context(None)
    server = Server(service.router())
    port = await server.listen_tcp("127.0.0.1", 0, lambda: context)
    gc.collect()
    gc.disable()
    try:
        channel = Channel.tcp("127.0.0.1", port, lambda: ours, lambda chain: None)
        await channel.unary(UNARY, echo(), Echo)
        living = [weakref.ref(each) for each in gc.get_objects() if isinstance(each, Connection | SSL.Connection)]
        assert len(living) == 4
        await channel.close()
        await server.drain(1)
        await until(lambda: not any(each() for each in living))
    finally:
        gc.enable()


async def test_the_end_of_each_call_is_told(service: EchoService, tmp_path: Path) -> None:
    ended: list[Code | None] = []

    def after(method: Method, peer: Peer, context: Context, error: RpcError | None, seconds: float) -> None:
        ended.append(error.code if error else None)

    router = service.router()
    router.after = after
    server = Server(router)
    path = str(tmp_path / "api.sock")
    await server.listen_unix(path, mode=0o700)
    async with Channel.unix(path) as channel:
        await channel.unary(UNARY, echo(), Echo)
        with pytest.raises(RpcError):
            await channel.unary(UNARY, echo("not found"), Echo)
        with pytest.raises(RpcError):
            await channel.unary(UNARY, echo("wait"), Echo, metadata={"x": "y"}, timeout=0.1)
        await until(lambda: len(ended) == 3)
    await server.drain(1)
    assert ended[:2] == [None, Code.NOT_FOUND]
    assert ended[2] in (Code.DEADLINE_EXCEEDED, Code.CANCELLED)
