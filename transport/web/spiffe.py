"""HTTPS with a server that proves itself by an X509-SVID, over whatever connection there is, through a proxy too.

OpenSSL is the one that `cryptography` brings, as for all TLS among SPIFFE peers: the interpreter's own neither shows
the chain of a peer nor says which key exchange was agreed on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from OpenSSL import SSL

from transport.http_client import Streams
from transport.sockets import WantRead
from transport.tls import OpenSslContext, OpenSslLink, web_client_context
from transport.web.urls import address

_CHUNK: Final = 64 * 1024

Verify = Callable[[tuple[bytes, ...]], None]
"""Judges the chain of a server, DER, leaf first. What it raises ends the connection."""


class SpiffeTls:
    """A `Secure` of transport.web.client: nothing of a request is sent before `verify` has let the server pass."""

    def __init__(self, verify: Verify, *, require_pq_kem: bool) -> None:
        self._verify = verify
        self._context: OpenSslContext = web_client_context(require_pq_kem=require_pq_kem)

    async def __call__(self, streams: Streams, host: str) -> tuple[TlsStream, TlsStream]:
        connection, link = self._context.detached("" if address(host) is not None else host)
        stream = TlsStream(streams, connection, link)
        await stream.handshake()
        self._verify(link.peer_certificates)
        return stream, stream


class TlsStream:
    """A Reader and Writer of transport.http_client. Raises OSError."""

    def __init__(self, streams: Streams, connection: SSL.Connection, link: OpenSslLink) -> None:
        self._reader, self._writer = streams
        self._connection = connection
        self._link = link

    async def handshake(self) -> None:
        while True:
            try:
                self._link.handshake()
            except WantRead:
                await self.drain()
                if not await self._more():
                    raise ConnectionError("the server ended the connection amid the TLS handshake") from None
            except OSError:
                self._collect()  # so that the server hears why
                raise
            else:
                await self.drain()
                return

    async def read(self, n: int, /) -> bytes:
        while True:
            try:
                return self._link.receive(n)
            except WantRead:
                await self.drain()
                if not await self._more():
                    return b""  # whoever reads knows by HTTP whether something is missing

    def write(self, data: bytes, /) -> None:
        """What is written waits in memory, so it is all taken at once."""
        left = memoryview(data)
        while left:
            left = left[self._link.send(left) :]

    async def drain(self) -> None:
        self._collect()
        await self._writer.drain()

    def _collect(self) -> None:
        """Hand on what TLS wants sent."""
        while True:
            try:
                self._writer.write(self._connection.bio_read(_CHUNK))
            except SSL.WantReadError:
                return

    async def _more(self) -> bool:
        data = await self._reader.read(_CHUNK)
        if data:
            self._connection.bio_write(data)
        return bool(data)
