"""A document over HTTPS, or over HTTP on a Unix socket. What is here blocks."""

from __future__ import annotations

import http.client
import socket
import ssl
from urllib.parse import urljoin, urlsplit

from operations.errors import TemporarilyUnavailable

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
    """At most `largest` bytes of what the URL or those it redirects to give. Raises TemporarilyUnavailable."""
    for _ in range(_REDIRECTS):
        location, content = _get(url, unix_socket, largest)
        if location is None:
            return content
        target = urljoin(url, location)
        if not unix_socket and urlsplit(target).scheme != "https":
            raise TemporarilyUnavailable(f"error downloading trust bundle: {url} leads to {target}, without TLS")
        url = target
    raise TemporarilyUnavailable(f"error downloading trust bundle: {url} redirects too often")


def _get(url: str, unix_socket: str, largest: int) -> tuple[str | None, bytes]:
    """The place that the URL redirects to, or its content."""
    parts = urlsplit(url)
    if unix_socket:
        connection: http.client.HTTPConnection = _UnixConnection(unix_socket)
    else:
        host = parts.hostname or ""
        context = ssl.create_default_context()
        connection = http.client.HTTPSConnection(host, parts.port, timeout=_TIMEOUT, context=context)
    try:
        connection.request("GET", f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/")
        response = connection.getresponse()
        if response.status in _MOVED and (location := response.getheader("Location")):
            return location, b""
        if response.status != http.client.OK:
            raise TemporarilyUnavailable(f"error downloading trust bundle: {url}: {response.status} {response.reason}")
        return None, response.read(largest)
    except (OSError, http.client.HTTPException) as error:
        raise TemporarilyUnavailable(f"unable to fetch trust bundle URL {url}: {error}") from error
    finally:
        connection.close()
