"""TLS: who may connect, with what, and what each end learns of the other."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_der_private_key

from operations.errors import InvalidArgument, Refused
from tests.simulators.echo import UNARY, Echo, EchoService, echo, text_of
from tests.simulators.svids import self_signed
from transport.client import Channel
from transport.limits import Limits
from transport.server import Server
from transport.status import Code, RpcError
from transport.tls import InProcessIdentity, OpenSslLink, client_context, server_context

SERVER = self_signed("spiffe://example.org/spire/server")
CLIENT = self_signed("spiffe://example.org/agent")


class Running:
    """An echo server on TCP whose identity and policy can be changed while it runs."""

    def __init__(self, service: EchoService, limits: Limits) -> None:
        self.service = service
        self.server = Server(service.router(), limits=limits)
        self.context = server_context(SERVER)
        self.port = 0
        self.chains: list[tuple[bytes, ...]] = []

    async def start(self) -> None:
        self.port = await self.server.listen_tcp("127.0.0.1", 0, lambda: self.context)

    def channel(self, identity: InProcessIdentity | None, *, require_pq_kem: bool = False) -> Channel:
        context = client_context(identity, require_pq_kem=require_pq_kem)
        return Channel.tcp("127.0.0.1", self.port, lambda: context, self.chains.append)


@pytest.fixture
async def running(service: EchoService) -> AsyncIterator[Running]:
    made = Running(service, Limits(handshake=0.5))
    await made.start()
    yield made
    await made.server.drain(5)


async def test_both_ends_see_the_others_chain(running: Running) -> None:
    async with running.channel(CLIENT) as channel:
        await channel.unary(UNARY, echo(), Echo)
    assert running.chains == [SERVER.chain]
    peer = running.service.peers[0]
    assert peer.certificates == CLIENT.chain
    assert peer.address.startswith("127.0.0.1:")
    assert peer.process is None


async def test_whole_chains_arrive_leaf_first(running: Running) -> None:
    chain = (SERVER.chain[0], CLIENT.chain[0])
    running.context = server_context(InProcessIdentity(chain, SERVER.private_key))
    client = InProcessIdentity((CLIENT.chain[0], SERVER.chain[0]), CLIENT.private_key)
    async with running.channel(client) as channel:
        await channel.unary(UNARY, echo(), Echo)
    assert running.chains == [chain]
    assert running.service.peers[0].certificates == client.chain


async def test_a_client_certificate_is_optional(running: Running) -> None:
    async with running.channel(None) as channel:
        await channel.unary(UNARY, echo(), Echo)
    assert running.service.peers[0].certificates == ()


async def test_the_verifier_stops_a_call_before_it_is_sent(running: Running) -> None:
    def refuse(chain: tuple[bytes, ...]) -> None:
        raise Refused("unexpected ID")

    context = client_context(CLIENT)
    async with Channel.tcp("127.0.0.1", running.port, lambda: context, refuse) as channel:
        with pytest.raises(RpcError) as caught:
            await channel.unary(UNARY, echo(), Echo)
    assert caught.value.code is Code.UNAVAILABLE
    assert caught.value.message == (
        'connection error: desc = "transport: authentication handshake failed: unexpected ID"'
    )
    assert not running.service.peers


async def test_rotation_is_a_new_context_for_new_connections(running: Running) -> None:
    old = running.channel(CLIENT)
    await old.unary(UNARY, echo(), Echo)
    rotated = self_signed("spiffe://example.org/spire/server")
    running.context = server_context(rotated)
    async with running.channel(CLIENT) as new:
        await new.unary(UNARY, echo(), Echo)
        await old.unary(UNARY, echo(), Echo)
    await old.close()
    assert running.chains == [SERVER.chain, rotated.chain]


async def test_the_key_exchange_is_post_quantum(running: Running) -> None:
    with socket.create_connection(("127.0.0.1", running.port)) as sock:
        link = client_context(None).link(sock, server=False)
        await asyncio.to_thread(link.handshake)
        assert isinstance(link, OpenSslLink)
        assert link.group == "X25519MLKEM768"


async def test_post_quantum_can_be_required(running: Running) -> None:
    running.context = server_context(SERVER, require_pq_kem=True)
    async with running.channel(CLIENT, require_pq_kem=True) as channel:
        assert text_of(await channel.unary(UNARY, echo("hello"), Echo)) == "hello"
    await refused(running.port, classical_client(ssl.TLSVersion.TLSv1_3))


def classical_client(version: ssl.TLSVersion, certificate: Path | None = None, alpn: str = "h2") -> ssl.SSLContext:
    """Python's own TLS, with a curve from before the quanta."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    context.set_ecdh_curve("prime256v1")
    context.set_alpn_protocols([alpn])
    if certificate is not None:
        context.load_cert_chain(certificate)
    return context


def greeting(port: int, context: ssl.SSLContext) -> bytes:
    """The first bytes after a handshake; none, or an error, when the server will not have us."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as plain, context.wrap_socket(plain) as secure:
        return secure.recv(9)


async def accepted(port: int, context: ssl.SSLContext) -> None:
    assert (await asyncio.to_thread(greeting, port, context))[3:4] == b"\x04"  # a SETTINGS frame


async def refused(port: int, context: ssl.SSLContext) -> None:
    try:
        assert await asyncio.to_thread(greeting, port, context) == b""
    except OSError:  # ssl.SSLError and ConnectionError are
        return


async def test_tls_1_2_needs_a_client_certificate(running: Running, tmp_path: Path) -> None:
    key = load_der_private_key(CLIENT.private_key, None)
    pem = tmp_path / "client.pem"
    certificate = ssl.DER_cert_to_PEM_cert(CLIENT.chain[0]).encode()
    pem.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + certificate)
    await accepted(running.port, classical_client(ssl.TLSVersion.TLSv1_2, pem))
    await refused(running.port, classical_client(ssl.TLSVersion.TLSv1_2))
    await accepted(running.port, classical_client(ssl.TLSVersion.TLSv1_3))


async def test_http_2_must_be_agreed_on(running: Running) -> None:
    await refused(running.port, classical_client(ssl.TLSVersion.TLSv1_3, alpn="http/1.1"))


async def test_who_connects_and_says_nothing_is_let_go(running: Running) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    started = time.monotonic()
    assert await reader.read() == b""
    assert time.monotonic() - started < 10
    writer.close()
    await writer.wait_closed()


async def test_garbage_does_no_harm(running: Running) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write(b"GET / HTTP/1.1\r\n\r\n" * 100)
    with suppress(ConnectionResetError):
        await reader.read()
    writer.close()
    with suppress(ConnectionResetError):
        await writer.wait_closed()
    async with running.channel(None) as channel:
        await channel.unary(UNARY, echo(), Echo)


def test_an_identity_that_does_not_fit_is_refused() -> None:
    for identity in (
        InProcessIdentity(SERVER.chain, CLIENT.private_key),
        InProcessIdentity((), CLIENT.private_key),
        InProcessIdentity((b"no certificate",), CLIENT.private_key),
        InProcessIdentity(CLIENT.chain, b"no key"),
    ):
        with pytest.raises(InvalidArgument, match="cannot be used for TLS"):
            client_context(identity)


def test_a_private_key_is_not_shown() -> None:
    assert "private_key" not in repr(CLIENT)
