"""HTTP to places that somebody else names, over TLS or not: through proxies, with names resolved by threads of our own.

A registry is named by an image, and so by whoever starts a container; a bundle endpoint by another trust domain. A
deadline is the caller's to set (`asyncio.timeout`), and ends everything here at once.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from operations.errors import InvalidArgument, Refused, TemporarilyUnavailable
from transport.http_client import NoAnswer, Query, Reader, Streams, TooLarge, Writer, exchange, one_query
from transport.web import trust
from transport.web.proxies import Proxy, proxy_for
from transport.web.urls import Url, address

_CHUNK = 64 * 1024
_RESOLVERS = 8
_MOST_ADDRESSES = 4
_CONNECT_SECONDS = 5.0

Headers = Mapping[str, str]
_NO_HEADERS: Headers = {}

Secure = Callable[[Streams, str], Awaitable[tuple[Reader, Writer]]]
"""Makes TLS of its own over a connection to a host, which is trusted then. Raises OSError, and what refuses a peer."""


@dataclass(frozen=True, slots=True)
class Response:
    """Header names are in small letters; one that comes several times has its values in a list."""

    status: int
    body: bytes
    headers: Mapping[str, list[str]]

    def header(self, name: str) -> str | None:
        return self.headers.get(name, [None])[0]


class HttpClient:
    """Makes a connection for each request. `environment` may name proxies, as everywhere: HTTPS_PROXY, NO_PROXY.

    `trusting` makes the TLS context, and may block; without it the host's CAs are trusted.
    """

    def __init__(self, environment: Mapping[str, str], trusting: Callable[[], ssl.SSLContext] | None = None) -> None:
        self._environment = environment
        self._trusting = trusting or trust.trusting
        self._tls: ssl.SSLContext | None = None
        # Whoever names a place also names who answers for the name, or does not: threads of our own bound it.
        self._resolvers = ThreadPoolExecutor(_RESOLVERS, thread_name_prefix="names")

    def close(self) -> None:
        self._resolvers.shutdown(wait=False, cancel_futures=True)

    async def get(
        self, url: Url, *, headers: Headers = _NO_HEADERS, largest: int, secure: Secure | None = None
    ) -> Response:
        return await self.request("GET", url, headers=headers, largest=largest, secure=secure)

    async def request(
        self,
        method: str,
        url: Url,
        *,
        headers: Headers = _NO_HEADERS,
        body: bytes = b"",
        largest: int,
        secure: Secure | None = None,
    ) -> Response:
        """The answer, whose body has at most `largest` bytes.

        `secure` is asked instead of the CAs that are trusted for the web, before anything of the request is sent.
        Raises TemporarilyUnavailable when there is no answer, Refused when it is larger.
        """
        proxy = proxy_for(url, self._environment)
        streams = await self._connect(url, proxy, secure)
        try:
            secured = streams if secure is None else await _secured(secure, streams, url)
            answer = await exchange(secured, _query(method, url, proxy, headers, body), url.origin)
            return Response(answer.status, await answer.body(largest), _values(answer.fields))
        except NoAnswer as error:
            raise TemporarilyUnavailable(f"{url.origin} gave no proper answer: {error.reason}") from error
        except InvalidArgument as error:
            raise Refused(f"cannot ask {error}") from error
        except TooLarge as error:
            what = url.target.partition("?")[0]
            raise Refused(f"{url.origin} sent more than {largest} bytes for {what}") from error
        finally:
            _abort(streams)

    async def connecting(self, url: Url, secure: Secure) -> None:
        """Connect, through a proxy too, for what `secure` finds there; nothing is sent. Raises as `request`."""
        streams = await self._connect(url, proxy_for(url, self._environment), secure)
        try:
            await _secured(secure, streams, url)
        finally:
            _abort(streams)

    async def _connect(self, url: Url, proxy: Proxy | None, secure: Secure | None) -> Streams:
        """Raises TemporarilyUnavailable."""
        try:
            tls = await self._context() if url.scheme == "https" and secure is None else None
            if proxy is None:
                return await self._open(url.host, url.port, tls)
            streams = await self._open(proxy.host, proxy.port, None)
            try:
                if url.scheme == "https":
                    await _tunnel(streams, url, proxy)
                if tls is not None:
                    await streams[1].start_tls(tls, server_hostname=url.host)
            except BaseException:
                _abort(streams)
                raise
            return streams
        except (OSError, NoAnswer, UnicodeError, ValueError) as error:  # a name that is none, a proxy that cuts off
            raise TemporarilyUnavailable(f"cannot reach {url.origin}: {_reason(error)}") from error

    async def _open(self, host: str, port: int, tls: ssl.SSLContext | None) -> Streams:
        """The first of the host's addresses that can be connected to."""
        name = host if tls is not None else None
        fault = OSError("it has no address")
        for place in await self._addresses(host, port):
            try:
                async with asyncio.timeout(_CONNECT_SECONDS):
                    return await asyncio.open_connection(place, port, ssl=tls, server_hostname=name, limit=_CHUNK)
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
            self._tls = made = await loop.run_in_executor(self._resolvers, self._trusting)
            return made
        return self._tls


async def _secured(secure: Secure, streams: Streams, url: Url) -> tuple[Reader, Writer]:
    try:
        return await secure(streams, url.host)
    except OSError as error:
        raise TemporarilyUnavailable(f"cannot reach {url.origin}: {_reason(error)}") from error


def _query(method: str, url: Url, proxy: Proxy | None, headers: Headers, body: bytes) -> Query:
    sent = {"User-Agent": "spire", **headers}
    target = url.target
    if proxy is not None and url.scheme == "http":
        target = str(url)
        if proxy.authorization is not None:
            sent["Proxy-Authorization"] = proxy.authorization
    return one_query(Query(target, method, sent, body), url.authority)


def _values(fields: Sequence[tuple[str, str]]) -> Mapping[str, list[str]]:
    values: dict[str, list[str]] = {}
    for name, value in fields:
        values.setdefault(name, []).append(value)
    return values


def _abort(streams: Streams) -> None:
    streams[1].transport.abort()


async def _tunnel(streams: Streams, url: Url, proxy: Proxy) -> None:
    """CONNECT (RFC 9110, 9.3.6). Raises NoAnswer."""
    host = f"[{url.host}]" if ":" in url.host else url.host
    headers = {"Host": f"{host}:{url.port}"}
    if proxy.authorization is not None:
        headers["Proxy-Authorization"] = proxy.authorization
    place = f"the proxy {proxy}"
    answer = await exchange(streams, Query(f"{host}:{url.port}", "CONNECT", headers), place)
    if answer.status not in range(200, 300):
        raise NoAnswer(place, f"it answered {answer.status}")
    if answer.beyond:
        raise NoAnswer(place, "it sent more than its answer")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
