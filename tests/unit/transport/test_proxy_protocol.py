"""PROXY headers, whole, in pieces and wrong: read to the byte, and believed from trusted proxies only."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
import struct
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operations.errors import InvalidArgument
from operations.http import Request, Response
from tests.simulators.pki import Authority, ec_key, pkcs8
from transport import proxy_protocol
from transport.http import HttpConnection, Times
from transport.limits import Limits
from transport.listener import Listener, Served, bind_tcp, tcp_opener
from transport.peer import Peer
from transport.proxy_protocol import LONGEST, is_from, missing, source
from transport.sockets import SocketStream
from transport.tls import InProcessIdentity, web_context

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)


def v2(command: int = 0x21, family: int = 0x11, body: bytes | None = None) -> bytes:
    if body is None:
        body = ipaddress.ip_address("192.0.2.7").packed + ipaddress.ip_address("10.0.0.1").packed
        body += struct.pack(">HH", 4711, 8081)
    return SIGNATURE + bytes((command, family)) + struct.pack(">H", len(body)) + body


V6 = ipaddress.ip_address("2001:db8::7").packed * 2 + struct.pack(">HH", 4711, 8081)
GOOD = [
    (b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 8081\r\n", "192.0.2.7:4711"),
    (b"PROXY TCP6 2001:db8::7 ::1 4711 8081\r\n", "[2001:db8::7]:4711"),
    (b"PROXY UNKNOWN\r\n", None),
    (b"PROXY UNKNOWN whatever 1 2\r\n", None),
    (v2(), "192.0.2.7:4711"),
    (v2(family=0x21, body=V6), "[2001:db8::7]:4711"),
    (v2(body=v2()[16:] + b"\x04\x00\x01x"), "192.0.2.7:4711"),  # with a TLV behind
    (v2(command=0x20, family=0, body=b""), None),  # LOCAL
    (v2(family=0x31, body=bytes(216)), None),  # Unix sockets
    (v2(family=0x12), None),  # datagrams
]
BAD = [
    b"PROXY TCP4 192.0.2.7 10.0.0.1 4711\r\n",
    b"PROXY TCP4 2001:db8::7 10.0.0.1 1 2\r\n",
    b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
    b"PROXY TCP4 192.0.2.7 10.0.0.1 70000 2\r\n",
    b"PROXY TCP4 192.0.2.7 10.0.0.1 01 2\r\n",
    b"PROXY TCP4  192.0.2.7 10.0.0.1 1 2\r\n",
    b"PROXY UDP4 192.0.2.7 10.0.0.1 1 2\r\n",
    b"PROXY \xff\r\n",
    b"PROXY \r\n",
    v2(command=0x11),
    v2(command=0x2F),
    v2(body=b"short"),
    v2(family=0x21),
    b"POST / HTTP/1.1\r\n",
]


@pytest.mark.parametrize(("header", "address"), GOOD)
def test_headers(header: bytes, address: str | None) -> None:
    assert missing(header) == 0
    assert source(header) == address
    for length in range(1, len(header)):
        assert 1 <= missing(header[:length]) <= len(header) - length, "never a byte too many"


@pytest.mark.parametrize("header", BAD)
def test_wrong_headers(header: bytes) -> None:
    with pytest.raises(InvalidArgument, match="PROXY header"):
        source(header)


def test_headers_without_end() -> None:
    with pytest.raises(InvalidArgument, match="no end"):
        missing(b"PROXY TCP4 " + b"1" * 200)
    with pytest.raises(InvalidArgument, match="longer"):
        missing(SIGNATURE + b"\x21\x11" + struct.pack(">H", LONGEST))


@given(
    st.binary(max_size=300)
    | st.binary(max_size=200).map(lambda rest: SIGNATURE + rest)
    | st.binary(max_size=200).map(lambda rest: b"PROXY " + rest)
)
def test_whatever_comes_is_read_or_refused(data: bytes) -> None:
    try:
        assert missing(data) >= 0
        source(data)
    except InvalidArgument:
        pass


def test_who_is_trusted() -> None:
    networks = [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("2001:db8::/32")]
    assert is_from("10.1.2.3", networks)
    assert is_from("::ffff:10.1.2.3", networks)
    assert is_from("2001:db8::1%eth0", networks)
    assert not is_from("192.0.2.1", networks)
    assert not is_from("2001:db9::1", networks)


@asynccontextmanager
async def listening(networks: Sequence[proxy_protocol.Network], *, handshake: float = 10.0) -> AsyncGenerator[int]:
    """An HTTPS server that answers with the address it believes to be the caller's."""
    authority = Authority.root()
    key = ec_key()
    context = web_context(InProcessIdentity((authority.sign(key=key),), pkcs8(key)))

    def serve(stream: SocketStream, peer: Peer, ended: Callable[[Served], None]) -> Served:
        async def handler(_: Request) -> Response:
            return Response(200, peer.address.encode())

        return HttpConnection(stream, peer, handler, None, Times(), ended)

    sock = await bind_tcp("127.0.0.1", 0)
    limits = Limits(handshake=handshake, connections=10)
    listener = Listener(sock, tcp_opener(lambda: context, networks), serve, limits)
    yield sock.getsockname()[1]
    await listener.drain(0)


async def ask(port: int, parts: Sequence[bytes]) -> bytes:
    """Send the parts one by one, then a request over TLS; the body of the answer. Raises OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with asyncio.timeout(30):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            for part in parts:
                writer.write(part)
                await asyncio.sleep(0)
            await writer.start_tls(context)
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = await reader.read()
        finally:
            writer.close()
    return answer.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize(
    "header", [b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 8081\r\n", v2()], ids=["version 1", "version 2"]
)
@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_a_trusted_proxy_is_believed(header: bytes, size: int) -> None:
    parts = [header[start : start + size] for start in range(0, len(header), size)]
    async with listening(LOOPBACK) as port:
        assert await ask(port, parts) == b"192.0.2.7:4711"


async def test_a_trusted_proxy_may_speak_for_itself() -> None:
    async with listening(LOOPBACK) as port:
        for parts in ([], [b"PROXY UNKNOWN\r\n"], [v2(command=0x20, family=0, body=b"")]):
            assert (await ask(port, parts)).startswith(b"127.0.0.1:")


async def test_others_are_not_believed() -> None:
    async with listening([ipaddress.ip_network("10.0.0.0/8")]) as port:
        assert (await ask(port, [])).startswith(b"127.0.0.1:")
        with pytest.raises(OSError):
            await ask(port, [b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 8081\r\n"])


@pytest.mark.parametrize("header", [b"PROXY TCP4 x\r\n", b"POST / HTTP/1.1\r\n\r\n", b"PROXY " + b"x" * 300, v2(0x11)])
async def test_wrong_headers_end_the_connection(header: bytes) -> None:
    async with listening(LOOPBACK) as port:
        with pytest.raises(OSError):
            await ask(port, [header])
        assert (await ask(port, [])).startswith(b"127.0.0.1:"), "others are served"


async def test_a_header_that_stops_is_not_waited_for() -> None:
    async with listening(LOOPBACK, handshake=0.2) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"PROXY TCP4 192")
        assert await asyncio.wait_for(reader.read(), 30) == b""
        writer.close()
