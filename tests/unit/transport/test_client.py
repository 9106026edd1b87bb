"""What a client says when there is no server, and how it finds back."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.simulators.echo import UNARY, Echo, EchoService, echo, text_of
from tests.simulators.svids import self_signed
from transport.client import Channel
from transport.limits import Limits
from transport.server import Server
from transport.status import Code, RpcError
from transport.tls import client_context


async def failure(channel: Channel) -> tuple[Code, str]:
    with pytest.raises(RpcError) as caught:
        await channel.unary(UNARY, echo(), Echo, timeout=5)
    return caught.value.code, caught.value.message


def dialing(target: str, reason: str) -> str:
    """grpc-go's text."""
    return f'connection error: desc = "transport: Error while dialing: dial {target}: connect: {reason}"'


async def test_no_socket(tmp_path: Path) -> None:
    path = tmp_path / "absent.sock"
    async with Channel.unix(str(path)) as channel:
        assert await failure(channel) == (Code.UNAVAILABLE, dialing(f"unix {path}", "no such file or directory"))


async def test_nobody_on_the_port(unused_port: int) -> None:
    context = client_context(self_signed("spiffe://example.org/agent"))
    async with Channel.tcp("127.0.0.1", unused_port, lambda: context, lambda chain: None) as channel:
        text = dialing(f"tcp 127.0.0.1:{unused_port}", "connection refused")
        assert await failure(channel) == (Code.UNAVAILABLE, text)


async def test_no_tls_there(tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    plain = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = plain.sockets[0].getsockname()[1]
    context = client_context(None)
    async with Channel.tcp("127.0.0.1", port, lambda: context, lambda chain: None) as channel:
        code, text = await failure(channel)
    assert code is Code.UNAVAILABLE
    assert text.startswith('connection error: desc = "transport: authentication handshake failed: ')
    plain.close()
    await plain.wait_closed()


async def test_a_server_that_comes_later_is_found(service: EchoService, tmp_path: Path) -> None:
    path = str(tmp_path / "late.sock")
    async with Channel.unix(path) as channel:
        await failure(channel)
        server = Server(service.router())
        await server.listen_unix(path, mode=0o700)
        async with asyncio.timeout(30):
            while True:
                try:
                    await channel.unary(UNARY, echo(), Echo)
                    break
                except RpcError:
                    await asyncio.sleep(0.02)
        await server.drain(1)
        again = Server(service.router())
        await again.listen_unix(path, mode=0o700)
        assert text_of(await channel.unary(UNARY, echo("back"), Echo)) == "back"
        await again.drain(1)


async def test_a_silent_server_is_given_up(service: EchoService, tmp_path: Path) -> None:
    """Keepalive: a connection whose pings stay unanswered fails its calls."""
    path = str(tmp_path / "silent.sock")

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\0\0\0\x04\0\0\0\0\0")  # SETTINGS, and then no more
        await reader.read()
        writer.close()

    silent = await asyncio.start_unix_server(swallow, path)
    limits = Limits(keepalive=0.1, keepalive_timeout=0.1)
    async with Channel.unix(path, limits=limits) as channel:
        code, text = await failure(channel)
    assert (code, text) == (
        Code.UNAVAILABLE,
        'connection error: desc = "keepalive ping failed to receive ACK within timeout"',
    )
    silent.close()


async def test_pings_are_answered(service: EchoService, socket_path: str) -> None:
    limits = Limits(keepalive=0.05, keepalive_timeout=1)
    async with Channel.unix(socket_path, limits=limits) as channel:
        call = asyncio.create_task(channel.unary(UNARY, echo("wait"), Echo))
        await asyncio.sleep(2.5)
        service.release.set()
        assert text_of(await call) == "wait"


async def test_closing_ends_calls(service: EchoService, socket_path: str) -> None:
    channel = Channel.unix(socket_path)
    call = asyncio.create_task(channel.unary(UNARY, echo("wait"), Echo))
    await service.started.wait()
    await channel.close()
    with pytest.raises(RpcError) as caught:
        await call
    assert caught.value.code is Code.CANCELLED
    assert (await failure(channel))[0] is Code.CANCELLED


async def test_a_deadline_covers_connecting(tmp_path: Path) -> None:
    path = str(tmp_path / "silent.sock")
    silent = await asyncio.start_unix_server(
        lambda reader, writer: writer.close(), path, backlog=1, start_serving=False
    )
    async with Channel.unix(path) as channel:
        with pytest.raises(RpcError) as caught:
            await channel.unary(UNARY, echo(), Echo, timeout=0.2)
    assert caught.value.code in (Code.DEADLINE_EXCEEDED, Code.UNAVAILABLE)
    silent.close()


async def test_metadata_that_no_header_holds_is_refused(channel: Channel) -> None:
    for name, value in (("Upper", "x"), ("grpc-timeout", "1S"), (":path", "/"), ("ok", "ü")):
        with pytest.raises(ValueError, match="cannot be sent as a header"):
            await channel.unary(UNARY, echo(), Echo, metadata={name: value})


async def test_a_server_that_sees_the_deadline_first_is_believed(tmp_path: Path) -> None:
    """It resets the call with CANCEL, which is to be read as the deadline that has passed."""
    reset = b"\0\0\x04\x03\0" + (1).to_bytes(4, "big") + (8).to_bytes(4, "big")

    async def cancel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\0\0\0\x04\0\0\0\0\0")
        await reader.readuntil(b"grpc-go-is-quicker")
        time.sleep(0.2)  # noqa: ASYNC251 - the client's own timer is to be late
        writer.write(reset)
        await reader.read()
        writer.close()

    path = str(tmp_path / "quick.sock")
    quick = await asyncio.start_unix_server(cancel, path)
    async with Channel.unix(path) as channel:
        with pytest.raises(RpcError) as caught:
            await channel.unary(UNARY, echo("grpc-go-is-quicker"), Echo, timeout=0.1)
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    quick.close()
