"""HTTP/1.1 as a client: one request a connection, within limits. Parsed by h11.

`asking` is for a service of the node or the cluster; `exchange` for those who make connections in ways of their own.
Redirects are left to the caller, so that credentials go to whom they are meant for.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol

import h11

from operations.errors import InvalidArgument, TemporarilyUnavailable
from transport.connecting import connect_unix
from transport.limits import KIB

_HEAD: Final = 64 * KIB
_CHUNK: Final = 64 * KIB

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Reader(Protocol):
    async def read(self, n: int, /) -> bytes:
        """At least one byte, or none at the end. Raises OSError."""
        ...


class Writer(Protocol):
    def write(self, data: bytes, /) -> None: ...
    async def drain(self) -> None: ...


class NoAnswer(TemporarilyUnavailable):
    """There is no service, none to be trusted, or no HTTP to be had. `reason` is the text without the place."""

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place}: {reason}")
        self.reason = reason


class TooLarge(TemporarilyUnavailable):
    """The body is larger than the caller takes."""


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
    """A response whose body is still to come."""

    def __init__(self, url: str, response: h11.Response, http: h11.Connection, reader: Reader) -> None:
        self.status = response.status_code
        self.phrase = response.reason.decode("latin-1")
        self.fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in response.headers]
        """The headers in their order, names in lower case. One name may come several times."""
        self._url = url
        self._http = http
        self._reader = reader

    @property
    def headers(self) -> dict[str, str]:
        """Of those that come several times, the last."""
        return dict(self.fields)

    @property
    def beyond(self) -> bytes:
        """What has been read already of what follows the response."""
        return self._http.trailing_data[0]

    async def read(self) -> bytes:
        """The next part of the body, none at its end. Raises NoAnswer when it breaks off."""
        with _told(self._url):
            event = await _next(self._http, self._reader)
        return bytes(event.data) if isinstance(event, h11.Data) else b""

    async def body(self, largest: int) -> bytes:
        """Raises NoAnswer, and TooLarge when there is more than `largest` bytes of it."""
        content = bytearray()
        while part := await self.read():
            content += part
            if len(content) > largest:
                raise TooLarge(f"{self._url}: the answer is larger than {largest} bytes")
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

    The caller sets the deadline. Raises NoAnswer, and InvalidArgument for what is no request.
    """
    url = f"{service.url}{query.target.partition('?')[0]}"
    with _told(url):
        streams = await service.connect()
    try:
        yield await exchange(streams, one_query(query, service.authority), url)
    finally:
        # Nothing is left to say, and a peer that does not read must not keep the connection.
        streams[1].transport.abort()


def one_query(query: Query, authority: str) -> Query:
    """The query as the only one of its connection. `authority` is the host that is asked, and its port."""
    headers = {"Host": authority, "Connection": "close", "Accept-Encoding": "identity", **query.headers}
    if query.body:
        headers["Content-Length"] = str(len(query.body))
    return Query(query.target, query.method, headers, query.body)


async def exchange(streams: tuple[Reader, Writer], query: Query, url: str) -> Incoming:
    """Sends the query with its headers and no others. `url` is for messages.

    The caller sets the deadline and ends the connection. Raises as `asking` does.
    """
    reader, writer = streams
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD)
    request = _request(http, query, url)
    with _told(url):
        writer.write(request)
        await writer.drain()
        event = await _next(http, reader)
        while isinstance(event, h11.InformationalResponse):
            event = await _next(http, reader)
        if not isinstance(event, h11.Response):
            raise ConnectionError("connection closed before the answer")
    return Incoming(url, event, http, reader)


def _request(http: h11.Connection, query: Query, url: str) -> bytes:
    try:
        events: list[h11.Request | h11.Data | h11.EndOfMessage] = [
            h11.Request(method=query.method, target=query.target, headers=list(query.headers.items()))
        ]
    except (h11.LocalProtocolError, UnicodeError):
        # Its own words have the header's value, which may be secret.
        raise InvalidArgument(f"{url}: a header or the path has characters that HTTP does not allow") from None
    if query.body:
        events.append(h11.Data(data=query.body))
    if query.method != "CONNECT":
        events.append(h11.EndOfMessage())
    return b"".join(http.send(event) or b"" for event in events)


async def _next(http: h11.Connection, reader: Reader) -> h11.Event:
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
            raise NoAnswer(self._url, _reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"tls: failed to verify certificate: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"tls: {(error.reason or str(error)).lower().replace('_', ' ')}"
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()
    return str(error) or type(error).__name__
