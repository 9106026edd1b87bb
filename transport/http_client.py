"""HTTP/1.1 to a service of the node or the cluster: one request a connection, within limits. Parsed by h11.

Redirects are not followed: none of these services has any, and credentials go to whom they are meant for.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import h11

from operations.errors import TemporarilyUnavailable
from transport.connecting import connect_unix
from transport.limits import KIB

_HEAD: Final = 64 * KIB
_CHUNK: Final = 64 * KIB

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, slots=True)
class Service:
    """Where to ask. Without `tls` in the clear; with it, `name`, or else `host`, is in the service's certificate."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None
    name: str = ""

    @property
    def authority(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'http' if self.tls is None else 'https'}://{self.authority}"

    async def connect(self) -> Streams:
        name = (self.name or self.host) if self.tls is not None else None
        return await asyncio.open_connection(self.host, self.port, ssl=self.tls, server_hostname=name, limit=_CHUNK)


@dataclass(frozen=True, slots=True)
class UnixService:
    """On a Unix socket, in the clear."""

    path: str

    @property
    def authority(self) -> str:
        return "localhost"

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    async def connect(self) -> Streams:
        return await asyncio.open_unix_connection(sock=await connect_unix(self.path), limit=_CHUNK)


@dataclass(frozen=True, slots=True)
class Query:
    """`headers` may hold secrets."""

    target: str
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    body: bytes = b""


class Incoming:
    """A response whose body is still to come. Its headers' names are in lower case."""

    def __init__(self, url: str, response: h11.Response, http: h11.Connection, reader: asyncio.StreamReader) -> None:
        self.status = response.status_code
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in response.headers}
        self._url = url
        self._http = http
        self._reader = reader

    async def read(self) -> bytes:
        """The next part of the body, none at its end. Raises TemporarilyUnavailable when it breaks off."""
        with _told(self._url):
            event = await _next(self._http, self._reader)
        return bytes(event.data) if isinstance(event, h11.Data) else b""

    async def body(self, largest: int) -> bytes:
        """Raises TemporarilyUnavailable too when there is more than `largest` bytes of it."""
        content = bytearray()
        while part := await self.read():
            content += part
            if len(content) > largest:
                raise TemporarilyUnavailable(f"{self._url}: the answer is larger than {largest} bytes")
        return bytes(content)

    async def beginning(self, size: int) -> bytes:
        """As much of the body as tells a person what is wrong."""
        content = bytearray()
        while len(content) < size and (part := await self.read()):
            content += part
        return bytes(content[:size])


@asynccontextmanager
async def asking(service: Service | UnixService, query: Query) -> AsyncGenerator[Incoming, None]:
    """The response as soon as its head is there; the connection ends with the block.

    The caller sets the deadline. Raises TemporarilyUnavailable when there is no service, none to be trusted or no
    HTTP to be had.
    """
    url = f"{service.url}{query.target.partition('?')[0]}"
    with _told(url):
        reader, writer = await service.connect()
    try:
        with _told(url):
            http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD)
            writer.write(_request(http, service, query))
            await writer.drain()
            event = await _next(http, reader)
            while isinstance(event, h11.InformationalResponse):
                event = await _next(http, reader)
            if not isinstance(event, h11.Response):
                raise ConnectionError("connection closed before the answer")
        yield Incoming(url, event, http, reader)
    finally:
        # Nothing is left to say, and a peer that does not read must not keep the connection.
        writer.transport.abort()


def _request(http: h11.Connection, service: Service | UnixService, query: Query) -> bytes:
    headers = {"Host": service.authority, "Connection": "close", "Accept-Encoding": "identity", **query.headers}
    if query.body:
        headers["Content-Length"] = str(len(query.body))
    events: list[h11.Request | h11.Data | h11.EndOfMessage] = [
        h11.Request(method=query.method, target=query.target, headers=list(headers.items()))
    ]
    if query.body:
        events.append(h11.Data(data=query.body))
    events.append(h11.EndOfMessage())
    return b"".join(http.send(event) or b"" for event in events)


async def _next(http: h11.Connection, reader: asyncio.StreamReader) -> h11.Event:
    while True:
        event = http.next_event()
        if isinstance(event, h11.Event):
            return event
        data = await reader.read(_CHUNK)
        if not data and http.their_state is h11.SEND_RESPONSE:
            raise ConnectionError("connection closed before the answer")
        http.receive_data(data)


class _told:  # noqa: N801 - reads as a sentence where it is used
    """Failures of network, TLS and HTTP as one line with the URL."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, (OSError, h11.ProtocolError, UnicodeError)) and not isinstance(error, TimeoutError):
            raise TemporarilyUnavailable(f"{self._url}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"tls: failed to verify certificate: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"tls: {(error.reason or str(error)).lower().replace('_', ' ')}"
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()
    return str(error) or type(error).__name__
