"""The bundle that a new agent trusts its server by: from a file, over HTTP(S), or none at all."""

from __future__ import annotations

import asyncio
import http.client
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode, urljoin, urlsplit

from identity.bundles import Bundle
from identity.spiffeid import TrustDomain
from operations.errors import InvalidArgument, TemporarilyUnavailable

_TIMEOUT = 30.0
_LARGEST = 4 << 20
_REDIRECTS = 5
_MOVED = frozenset((301, 302, 303, 307, 308))


@dataclass(frozen=True, slots=True)
class TrustBundleSource:
    """Where the bundle comes from: `path` or `url`; none of them means insecure bootstrap. `format` is pem or spiffe.

    With `unix_socket` the URL is asked for over that socket, and told who asks.
    """

    trust_domain: TrustDomain
    server_address: str
    server_port: int
    path: str = ""
    url: str = ""
    unix_socket: str = ""
    format: str = "pem"


async def bootstrap_bundle(source: TrustBundleSource) -> tuple[bytes, ...] | None:
    """The X.509 authorities (DER), or None to trust the first server that answers.

    Raises InvalidArgument for content that is no bundle, TemporarilyUnavailable when there is none to be had.
    """
    if source.url:
        document = await asyncio.to_thread(_download, _asking(source), source.unix_socket)
        return _parse(source, document, source.url)
    if source.path:
        return _parse(source, await asyncio.to_thread(_read, source.path), source.path)
    return None


def _read(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(_LARGEST)
    except OSError as error:
        # It may be on its way: agents and their bundles are often delivered at the same time.
        raise TemporarilyUnavailable(
            f"{path}: could not read the trust bundle: {error.strerror}; check trust_bundle_path"
        ) from error


def _parse(source: TrustBundleSource, document: bytes, origin: str) -> tuple[bytes, ...]:
    try:
        if source.format == "spiffe":
            bundle = Bundle.from_jwks(source.trust_domain, document)
        else:
            bundle = Bundle.from_pem(source.trust_domain, document)
    except InvalidArgument as error:
        raise InvalidArgument(f"could not parse trust bundle {origin}: {error}") from error
    if not bundle.x509_authorities:
        raise InvalidArgument(f"no certificates found in trust bundle {origin}")
    return tuple(each.der for each in bundle.x509_authorities)


def _asking(source: TrustBundleSource) -> str:
    if not source.unix_socket:
        return source.url
    parameters = {
        "spire-attest-mode": "bootstrap",
        "spire-server-address": source.server_address,
        "spire-server-port": str(source.server_port),
        "spiffe-trust-domain": source.trust_domain.name,
    }
    separator = "&" if urlsplit(source.url).query else "?"
    return f"{source.url}{separator}{urlencode(parameters)}"


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_TIMEOUT)
        self.sock.connect(self._path)


def _download(url: str, unix_socket: str) -> bytes:
    for _ in range(_REDIRECTS):
        location, content = _get(url, unix_socket)
        if location is None:
            return content
        target = urljoin(url, location)
        if not unix_socket and urlsplit(target).scheme != "https":
            raise TemporarilyUnavailable(f"error downloading trust bundle: {url} leads to {target}, without TLS")
        url = target
    raise TemporarilyUnavailable(f"error downloading trust bundle: {url} redirects too often")


def _get(url: str, unix_socket: str) -> tuple[str | None, bytes]:
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
        return None, response.read(_LARGEST)
    except (OSError, http.client.HTTPException) as error:
        raise TemporarilyUnavailable(f"unable to fetch trust bundle URL {url}: {error}") from error
    finally:
        connection.close()
