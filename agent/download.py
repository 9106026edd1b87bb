"""A document over HTTPS, or over HTTP on a Unix socket. What is here blocks."""

from __future__ import annotations

import http.client
import socket
import ssl
from urllib.parse import urljoin, urlsplit

from operations.errors import InvalidArgument, TemporarilyUnavailable

_TIMEOUT = 30.0
_REDIRECTS = 5
_MOVED = frozenset((301, 302, 303, 307, 308))


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_TIMEOUT)
        self.sock.connect(self._path)


def download(url: str, unix_socket: str, largest: int) -> bytes:
    """At most `largest` bytes of what the URL or those it redirects to give.

    Raises InvalidArgument for what is no URL, TemporarilyUnavailable when there is nothing to be had.
    """
    for _ in range(_REDIRECTS):
        location, content = _get(url, unix_socket, largest)
        if location is None:
            return content
        target = _target(url, location)
        if not unix_socket and urlsplit(target).scheme != "https":
            raise TemporarilyUnavailable(f"error downloading trust bundle: {url} leads to {target}, without TLS")
        url = target
    raise TemporarilyUnavailable(f"error downloading trust bundle: {url} redirects too often")


def _get(url: str, unix_socket: str, largest: int) -> tuple[str | None, bytes]:
    """The place that the URL redirects to, or its content."""
    parts = urlsplit(url)
    connection = _connection(url, unix_socket)
    try:
        connection.request("GET", f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/")
        # A response that ends with its connection holds the socket itself.
        with connection.getresponse() as response:
            if response.status in _MOVED and (location := response.getheader("Location")):
                return location, b""
            if response.status != http.client.OK:
                status = f"{response.status} {response.reason}"
                raise TemporarilyUnavailable(f"error downloading trust bundle: {url}: {status}")
            return None, response.read(largest)
    except (OSError, UnicodeError, http.client.HTTPException) as error:  # IDNA takes no empty and no overlong labels
        raise TemporarilyUnavailable(f"unable to fetch trust bundle URL {url}: {error}") from error
    finally:
        connection.close()


def _target(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise TemporarilyUnavailable(f"error downloading trust bundle: {url} leads to {location!r}: {error}") from error


def _connection(url: str, unix_socket: str) -> http.client.HTTPConnection:
    """Not connected yet."""
    if unix_socket:
        return _UnixConnection(unix_socket)
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError as error:
        raise InvalidArgument(f"{url} is no URL: {error}; check trust_bundle_url") from error
    return http.client.HTTPSConnection(
        parts.hostname or "", port, timeout=_TIMEOUT, context=ssl.create_default_context()
    )
