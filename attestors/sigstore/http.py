"""One HTTP/1.1 request at a time, over TLS or not: bounded answers, no redirects, parsed by h11.

Registries are named by images, and so by whoever starts a container: a deadline is the caller's to set
(`asyncio.timeout`), and ends everything here at once.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import h11

from attestors.sigstore.proxies import Proxy, proxy_for
from attestors.sigstore.urls import Url, address
from operations.errors import Refused, TemporarilyUnavailable

_HEAD_BYTES = 64 * 1024
_CHUNK = 64 * 1024
_RESOLVERS = 8
_MOST_ADDRESSES = 4
_CONNECT_SECONDS = 5.0
_AGENT = "spire-agent"

Headers = Mapping[str, str]
_NO_HEADERS: Headers = {}


@dataclass(frozen=True, slots=True)
class Response:
    """Header names are in small letters; one that comes several times has its values in a list."""

    status: int
    body: bytes
    headers: Mapping[str, list[str]]

    def header(self, name: str) -> str | None:
        return self.headers.get(name, [None])[0]


class HttpClient:
    """Makes a connection for each request. `environment` may name proxies, as everywhere: HTTPS_PROXY, NO_PROXY."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._tls: ssl.SSLContext | None = None
        # Whoever names a registry also names who answers for the name, or does not: threads of our own bound it.
        self._resolvers = ThreadPoolExecutor(_RESOLVERS, thread_name_prefix="sigstore-names")

    def close(self) -> None:
        self._resolvers.shutdown(wait=False, cancel_futures=True)

    async def get(self, url: Url, *, headers: Headers = _NO_HEADERS, largest: int) -> Response:
        return await self.request("GET", url, headers=headers, largest=largest)

    async def request(
        self, method: str, url: Url, *, headers: Headers = _NO_HEADERS, body: bytes = b"", largest: int
    ) -> Response:
        """The answer, whose body has at most `largest` bytes.

        Raises TemporarilyUnavailable when there is none, Refused when it is larger.
        """
        proxy = proxy_for(url, self._environment)
        try:
            stream = await self._connect(url, proxy)
        except (OSError, UnicodeError, ValueError) as error:  # a name that is none, a proxy that cuts off
            raise TemporarilyUnavailable(f"cannot reach {url.origin}: {_reason(error)}") from error
        try:
            target = str(url) if proxy is not None and url.scheme == "http" else url.target
            return await _exchange(stream, url, method, target, headers, body, largest)
        except (OSError, h11.RemoteProtocolError) as error:
            raise TemporarilyUnavailable(f"{url.origin} gave no proper answer: {_reason(error)}") from error
        except h11.LocalProtocolError as error:
            raise Refused(f"cannot ask {url.origin}: {error}") from error
        finally:
            stream.abort()

    async def _connect(self, url: Url, proxy: Proxy | None) -> _Stream:
        tls = await self._context() if url.scheme == "https" else None
        if proxy is None:
            return await self._open(url.host, url.port, tls)
        stream = await self._open(proxy.host, proxy.port, None)
        try:
            if tls is not None:
                await _tunnel(stream, url, proxy)
                await stream.writer.start_tls(tls, server_hostname=url.host)
            elif proxy.authorization is not None:
                stream.proxy_authorization = proxy.authorization
        except BaseException:
            stream.abort()
            raise
        return stream

    async def _open(self, host: str, port: int, tls: ssl.SSLContext | None) -> _Stream:
        """The first of the host's addresses that can be connected to."""
        name = host if tls is not None else None
        fault = OSError("it has no address")
        for place in await self._addresses(host, port):
            try:
                async with asyncio.timeout(_CONNECT_SECONDS):
                    opened = await asyncio.open_connection(place, port, ssl=tls, server_hostname=name, limit=_CHUNK)
                    return _Stream(*opened)
            except TimeoutError:
                fault = OSError(f"no connection within {_CONNECT_SECONDS:g} s")
            except OSError as error:
                fault = error
        raise fault

    async def _addresses(self, host: str, port: int) -> list[str]:
        if address(host) is not None:
            return [host]
        found = await asyncio.get_running_loop().run_in_executor(
            self._resolvers, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
        return list(dict.fromkeys(str(each[4][0]) for each in found))[:_MOST_ADDRESSES]

    async def _context(self) -> ssl.SSLContext:
        """The host's CAs, or those that SSL_CERT_FILE and SSL_CERT_DIR name; reading them takes a while."""
        if self._tls is None:
            loop = asyncio.get_running_loop()
            self._tls = made = await loop.run_in_executor(self._resolvers, _trusting_the_host)
            return made
        return self._tls


@dataclass(slots=True)
class _Stream:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    proxy_authorization: str | None = None

    def abort(self) -> None:
        self.writer.transport.abort()


def _trusting_the_host() -> ssl.SSLContext:
    """Blocks."""
    context = ssl.create_default_context()
    # Python 3.13 sets it, and private CAs seldom are so strict (RFC 5280, 4.2.1.1); Go does not ask for it either.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


async def _tunnel(stream: _Stream, url: Url, proxy: Proxy) -> None:
    """CONNECT (RFC 9110, 9.3.6)."""
    host = f"[{url.host}]" if ":" in url.host else url.host
    headers = {"Host": f"{host}:{url.port}"}
    if proxy.authorization is not None:
        headers["Proxy-Authorization"] = proxy.authorization
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_BYTES)
    request = h11.Request(method="CONNECT", target=f"{host}:{url.port}", headers=list(headers.items()))
    stream.writer.write(connection.send(request))
    try:
        response = await _head(stream.reader, connection)
    except h11.RemoteProtocolError as error:
        raise OSError(f"the proxy {proxy} gave no proper answer") from error
    if not 200 <= response.status_code < 300:
        raise OSError(f"the proxy {proxy} answered {response.status_code}")
    if connection.trailing_data[0]:
        raise OSError(f"the proxy {proxy} sent more than its answer")


async def _exchange(
    stream: _Stream, url: Url, method: str, target: str, headers: Headers, body: bytes, largest: int
) -> Response:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_BYTES)
    all_headers = {"Host": url.authority, "User-Agent": _AGENT, "Connection": "close", **headers}
    if stream.proxy_authorization is not None:
        all_headers["Proxy-Authorization"] = stream.proxy_authorization
    if body:
        all_headers["Content-Length"] = str(len(body))
    sent = [connection.send(h11.Request(method=method, target=target, headers=list(all_headers.items())))]
    if body:
        sent.append(connection.send(h11.Data(data=body)))
    sent.append(connection.send(h11.EndOfMessage()))
    stream.writer.write(b"".join(part for part in sent if part))
    await stream.writer.drain()
    head = await _head(stream.reader, connection)
    received: dict[str, list[str]] = {}
    for name, value in head.headers:
        received.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
    return Response(head.status_code, await _body(stream.reader, connection, url, largest), received)


async def _head(reader: asyncio.StreamReader, connection: h11.Connection) -> h11.Response:
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_CHUNK))
        elif isinstance(event, h11.Response):
            return event
        elif not isinstance(event, h11.InformationalResponse):
            raise h11.RemoteProtocolError("the connection ended")


async def _body(reader: asyncio.StreamReader, connection: h11.Connection, url: Url, largest: int) -> bytes:
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_CHUNK))
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > largest:
                raise Refused(f"{url.origin} sent more than {largest} bytes for {url.target.partition('?')[0]}")
        else:
            return bytes(body)


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
