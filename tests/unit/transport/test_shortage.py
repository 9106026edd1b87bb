"""When something runs out: descriptors, the patience of a drain, the room in headers, the peer's will to read."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.message import Message

from operations.errors import InvalidArgument
from tests.simulators.echo import CHAT, FETCH, SERVICE, UNARY, Echo, EchoService, echo, text_of
from tests.simulators.svids import self_signed
from transport.client import Channel
from transport.client_connection import ClientConnection
from transport.limits import Limits
from transport.peer import Peer
from transport.router import Context, Router
from transport.server import Server
from transport.status import Code, RpcError
from transport.tls import server_context


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Puts the limit on open files back."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def use_up_descriptors() -> list[int]:
    used = [os.open("/dev/null", os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (used[0] + 50, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    while True:
        try:
            used.append(os.dup(used[0]))
        except OSError:
            return used


@pytest.mark.usefixtures("descriptors")
async def test_a_listener_survives_a_shortage_of_descriptors(service: EchoService, tmp_path: Path) -> None:
    server = Server(service.router())
    path = str(tmp_path / "api.sock")
    await server.listen_unix(path, mode=0o700)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        client.setblocking(False)
        used = use_up_descriptors()
        try:
            began = time.process_time()
            await asyncio.sleep(0.4)
            assert time.process_time() - began < 0.2, "waiting for descriptors must not spin"
        finally:
            for each in used:
                os.close(each)
        greeting = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 9), 10)
        assert greeting[3:4] == b"\x04"
    async with Channel.unix(path) as channel:
        assert text_of(await channel.unary(UNARY, echo("hello"), Echo)) == "hello"
    await server.drain(5)


@pytest.mark.usefixtures("descriptors")
async def test_listening_raises_the_limit_on_open_files(service: EchoService, tmp_path: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    server = Server(service.router(), limits=Limits(connections=1500))
    await server.listen_unix(str(tmp_path / "api.sock"), mode=0o700)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(4000, hard), hard)
    await server.drain(1)


async def test_draining_does_not_wait_for_handshakes(service: EchoService) -> None:
    server = Server(service.router(), limits=Limits(handshake=60))
    context = server_context(self_signed("spiffe://example.org/spire/server"))
    port = await server.listen_tcp("127.0.0.1", 0, lambda: context)
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    await asyncio.sleep(0.05)
    await asyncio.wait_for(server.drain(0.1), 5)
    writer.close()


async def test_a_long_error_arrives_shortened(tmp_path: Path) -> None:
    async def refuse(request: Message, peer: Peer, context: Context) -> Message:
        raise InvalidArgument("ü" * 200_000)

    router = Router()
    router.add(SERVICE, {"Unary": refuse})
    server = Server(router)
    path = str(tmp_path / "api.sock")
    await server.listen_unix(path, mode=0o700)
    async with Channel.unix(path) as channel:
        with pytest.raises(RpcError) as caught:
            await channel.unary(UNARY, echo(), Echo, timeout=60)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.message.startswith("ü" * 1000)
    assert caught.value.message.endswith(" ...")
    await server.drain(1)


async def test_metadata_beyond_all_headers_is_refused_at_once(channel: Channel) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        await channel.unary(UNARY, echo(), Echo, metadata={"large": "x" * 70_000}, timeout=60)
    # What the server's own limit refuses fails as well, and the connection is good for more.
    with pytest.raises(RpcError):
        await channel.unary(UNARY, echo(), Echo, metadata={"large": "x" * 30_000}, timeout=60)
    assert text_of(await channel.unary(UNARY, echo("hello"), Echo)) == "hello"


async def test_what_is_read_after_the_end_does_not_count_twice(channel: Channel) -> None:
    async with asyncio.timeout(30):
        stream = channel.server_stream(FETCH, echo("x", 50, b"y" * 1000), Echo)
        await anext(stream)
        await channel.unary(UNARY, echo(), Echo)  # all has arrived, and the stream has ended, by now
        assert len([message async for message in stream]) == 49
    (connection,) = [each for each in gc.get_objects() if isinstance(each, ClientConnection) and not each.closed]
    assert connection.unread == 0


async def test_small_messages_count_with_what_they_cost(service: EchoService, tmp_path: Path) -> None:
    """Many tiny messages that a handler does not read: refused long before they have taken the memory."""
    server = Server(service.router(), limits=Limits(unread=256 * 1024))
    path = str(tmp_path / "api.sock")
    await server.listen_unix(path, mode=0o700)
    async with Channel.unix(path) as channel, channel.bidi(CHAT, Echo, timeout=30) as stream:
        with pytest.raises(RpcError) as caught:  # noqa: PT012 - whichever send it is
            for _ in range(50_000):
                await stream.send(echo())
            while await stream.recv() is not None:
                pass
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    await server.drain(1)


async def test_a_deadline_frees_a_sender_from_a_server_that_does_not_read(tmp_path: Path) -> None:
    settings = b"\0\0\x06\x04\0" + bytes(4) + b"\0\x04" + (2**31 - 1).to_bytes(4, "big")
    window = b"\0\0\x04\x08\0" + bytes(4) + (2**30).to_bytes(4, "big")
    over = asyncio.Event()

    async def stuck(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(settings + window)
        await over.wait()
        writer.transport.abort()

    path = str(tmp_path / "stuck.sock")
    server = await asyncio.start_unix_server(stuck, path)
    channel = Channel.unix(path)
    async with asyncio.timeout(30):
        with pytest.raises(RpcError) as caught:  # noqa: PT012 - whichever send it is
            async with channel.bidi(CHAT, Echo, timeout=0.5) as stream:
                while True:
                    await stream.send(echo(payload=bytes(1024 * 1024)))
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    over.set()
    await channel.close()
    server.close()
