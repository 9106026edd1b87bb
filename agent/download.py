"""A document over HTTPS, or over HTTP on a Unix socket."""

from __future__ import annotations

import asyncio
import ssl
from urllib.parse import urljoin, urlsplit

from agent.tasks import in_own_thread
from operations.errors import InvalidArgument, TemporarilyUnavailable
from transport.http_client import NoAnswer, Query, Service, UnixService, asking

TIMEOUT = 30.0
"""Seconds for all of it, redirects too."""

_REDIRECTS = 5
_MOVED = frozenset((301, 302, 303, 307, 308))
_OK = 200
_HTTPS = 443


async def download(url: str, unix_socket: str, largest: int) -> bytes:
    """At most `largest` bytes of what the URL or those it redirects to give. Raises TemporarilyUnavailable."""
    try:
        async with asyncio.timeout(TIMEOUT):
            return await _follow(url, unix_socket, largest)
    except TimeoutError as error:
        raise TemporarilyUnavailable(f"unable to fetch trust bundle URL {url} within {TIMEOUT:g} s") from error


async def _follow(url: str, unix_socket: str, largest: int) -> bytes:
    for _ in range(_REDIRECTS):
        location, content = await _get(url, unix_socket, largest)
        if location is None:
            return content
        target = _target(url, location)
        if not unix_socket and urlsplit(target).scheme != "https":
            raise TemporarilyUnavailable(f"error downloading trust bundle: {url} leads to {target}, without TLS")
        url = target
    raise TemporarilyUnavailable(f"error downloading trust bundle: {url} redirects too often")


async def _get(url: str, unix_socket: str, largest: int) -> tuple[str | None, bytes]:
    """The place that the URL redirects to, or its content."""
    parts = urlsplit(url)
    path = parts.path or "/"
    try:
        service = UnixService(unix_socket) if unix_socket else await _service(url)
        host = parts.netloc.rpartition("@")[2].encode("idna").decode("ascii")
        query = Query(f"{path}?{parts.query}" if parts.query else path, headers={"Host": host})
        async with asking(service, query) as answer:
            if answer.status in _MOVED and (location := answer.headers.get("location")):
                return location, b""
            if answer.status != _OK:
                raise TemporarilyUnavailable(f"error downloading trust bundle: {url}: {answer.status} {answer.phrase}")
            return None, await answer.beginning(largest)
    except NoAnswer as error:
        raise TemporarilyUnavailable(f"unable to fetch trust bundle URL {url}: {error.reason}") from error
    except (InvalidArgument, ValueError) as error:  # no port; IDNA takes no empty and no overlong labels
        raise TemporarilyUnavailable(f"unable to fetch trust bundle URL {url}: {error}") from error


def _target(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise TemporarilyUnavailable(f"error downloading trust bundle: {url} leads to {location!r}: {error}") from error


async def _service(url: str) -> Service:
    parts = urlsplit(url)
    port = parts.port or _HTTPS
    if not parts.hostname:
        raise InvalidArgument("it names no host")
    # The authorities that this host trusts come from its disk.
    return Service(parts.hostname, port, await in_own_thread(ssl.create_default_context))
