"""Servers that take a connection and then no call: each attempt counts as a failure, with its reason."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_der_private_key

from tests.simulators.echo import UNARY, Echo, echo
from tests.simulators.svids import self_signed
from transport.client import Channel
from transport.limits import Limits
from transport.status import Code, RpcError
from transport.tls import client_context

SETTINGS = b"\0\0\0\x04\0\0\0\0\0"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def go_away(code: int, debug: bytes) -> bytes:
    payload = (0).to_bytes(4, "big") + code.to_bytes(4, "big") + debug
    return len(payload).to_bytes(3, "big") + b"\x07\0" + bytes(4) + payload


class Useless:
    """A server on a Unix socket that says `words` to whoever connects, and closes."""

    def __init__(self, words: bytes = b"") -> None:
        self.words = words
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.write(self.words)
        if self.words:
            await reader.readexactly(24)  # the client's preface: nothing is lost to a reset
        writer.close()


@pytest.fixture
async def useless(tmp_path: Path) -> AsyncIterator[Useless]:
    made = Useless()
    server = await asyncio.start_unix_server(made.serve, tmp_path / "useless.sock")
    yield made
    server.close()
    await server.wait_closed()


async def failure(channel: Channel) -> str:
    """Of a call without a timeout."""
    async with asyncio.timeout(30):
        with pytest.raises(RpcError) as caught:
            await channel.unary(UNARY, echo(), Echo)
    assert caught.value.code is Code.UNAVAILABLE
    return caught.value.message


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (b"", "error reading from server: "),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", ""),
        (go_away(11, b"too_many_pings"), ""),
        (
            SETTINGS + go_away(11, b"too_many_pings"),
            'received prior goaway: code: ENHANCE_YOUR_CALM, debug data: "too_many_pings"',
        ),
        (SETTINGS + go_away(0, b'"\n'), r'received prior goaway: code: NO_ERROR, debug data: "\"\n"'),
    ],
    ids=["closes", "is no HTTP/2", "only GOAWAY", "SETTINGS and GOAWAY", "odd debug data"],
)
async def test_a_connection_that_ends_at_once_is_a_failure(
    useless: Useless, tmp_path: Path, words: bytes, reason: str
) -> None:
    useless.words = words
    async with Channel.unix(str(tmp_path / "useless.sock")) as channel:
        text = await failure(channel)
        assert text.startswith('connection error: desc = "')
        assert reason in text
        assert useless.connections == 1


async def test_failures_of_that_kind_are_spaced_out(useless: Useless, tmp_path: Path) -> None:
    useless.words = SETTINGS + go_away(0, b"")
    loop = asyncio.get_running_loop()
    async with Channel.unix(str(tmp_path / "useless.sock")) as channel:
        until = loop.time() + 1
        while loop.time() < until:
            await failure(channel)
            await asyncio.sleep(0)
    assert useless.connections <= 8  # 50 ms, and 1.6 times as long after each


async def test_a_greeting_that_does_not_come_is_given_up(tmp_path: Path) -> None:
    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    path = str(tmp_path / "silent.sock")
    silent = await asyncio.start_unix_server(swallow, path)
    async with Channel.unix(path, limits=Limits(handshake=0.2)) as channel:
        assert await failure(channel) == 'connection error: desc = "no HTTP/2 preface came"'
    silent.close()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_certificate_that_the_server_rejects(tmp_path: Path, version: ssl.TLSVersion) -> None:
    """In TLS 1.3 the client learns of it after its own handshake has ended."""
    made = self_signed("spiffe://example.org/spire/server")
    pem = tmp_path / "server.pem"
    key = load_der_private_key(made.private_key, None).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    pem.write_bytes(key + ssl.DER_cert_to_PEM_cert(made.chain[0]).encode())
    strict = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    strict.load_cert_chain(pem)
    strict.verify_mode = ssl.CERT_REQUIRED  # and no authority is known
    strict.set_alpn_protocols(["h2"])
    strict.minimum_version = strict.maximum_version = version

    def reject(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        with sock, suppress(ssl.SSLError):
            strict.wrap_socket(sock, server_side=True).close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        rejecting = asyncio.create_task(asyncio.to_thread(reject, listener))
        port: int = listener.getsockname()[1]
        context = client_context(self_signed("spiffe://example.org/agent"))
        async with Channel.tcp("127.0.0.1", port, lambda: context, lambda chain: None) as channel:
            text = await failure(channel)
        await rejecting
    assert "unknown ca" in text
