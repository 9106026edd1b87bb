"""Where container engines listen, as `unix:///run/podman/podman.sock` or `tcp://host:2375/base`. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from operations.errors import InvalidArgument
from operations.quoting import quote
from transport.http_client import Service, UnixService

_HTTP_PORT = 80
_LONGEST_PATH = 107
"""Bytes, of a Unix socket's address (unix(7))."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`text` is as configured; `base` goes before the paths of requests, and is mostly empty."""

    text: str
    service: Service | UnixService
    base: str = ""


def parse(text: str) -> Endpoint:
    """Raises InvalidArgument."""
    scheme, separator, address = text.partition("://")
    if not separator or not address:
        raise InvalidArgument(f"unable to parse docker host {quote(text)}: write unix:///path or tcp://host:port")
    if scheme == "unix":
        return Endpoint(text, UnixService(_socket_path(address)))
    if scheme in ("tcp", "http"):
        return _tcp(text)
    raise InvalidArgument(f"docker host {quote(text)}: {quote(scheme)} is not available: use unix:// or tcp://")


def _socket_path(path: str) -> str:
    if "\0" in path:
        raise InvalidArgument(f"unix socket path {quote(path)} cannot be used")
    if len(path.encode()) > _LONGEST_PATH:
        raise InvalidArgument(f"unix socket path {quote(path)} is too long: {_LONGEST_PATH} bytes at most")
    return path


def _tcp(text: str) -> Endpoint:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidArgument(f"unable to parse docker host {quote(text)}: {error}") from error
    if not host:
        raise InvalidArgument(f"unable to parse docker host {quote(text)}: it names no host")
    return Endpoint(text, Service(host, _HTTP_PORT if port is None else port), parts.path.rstrip("/"))
