"""URLs of HTTP and HTTPS (RFC 9110, 4.2), taken apart: no user information, nothing that could end a line."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

from operations.errors import InvalidArgument
from operations.quoting import quote

_PORTS = {"http": 80, "https": 443}
_TARGET = re.compile(r"[!-~]*")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_LONGEST = 8 * 1024


@dataclass(frozen=True, slots=True)
class Url:
    """`host` is in small letters and has no brackets; `target` is path and query, as a request names them."""

    scheme: str
    host: str
    port: int
    target: str

    @classmethod
    def parse(cls, text: str) -> Url:
        """Raises InvalidArgument."""
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise InvalidArgument(f"{quote(text[:100])} is no URL: {error}") from error
        if parts.scheme not in _PORTS or not parts.hostname:
            raise InvalidArgument(f"{quote(text[:100])} is no URL: use https://HOST")
        if "@" in parts.netloc:
            raise InvalidArgument("a URL with a user's name is not taken")  # and not shown: there may be a password
        if address(parts.hostname) is None and _NUMBER.fullmatch(parts.hostname.rstrip(".").rpartition(".")[2]):
            # Resolvers take 2852039166 and 0xa9fea9fe for addresses, which no check here would know.
            raise InvalidArgument(f"{quote(text[:100])} is no URL: its host is neither a name nor an address")
        target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        if len(text) > _LONGEST or not _TARGET.fullmatch(target) or not _TARGET.fullmatch(parts.hostname):
            raise InvalidArgument("a URL is too long, or has characters that none may have")
        return cls(parts.scheme, parts.hostname, port or _PORTS[parts.scheme], target)

    def join(self, location: str) -> Url:
        """Where a redirect leads. Raises InvalidArgument."""
        try:
            return Url.parse(urljoin(str(self), location))
        except ValueError as error:
            raise InvalidArgument(f"{quote(location[:100])} is no URL: {error}") from error

    def __str__(self) -> str:
        return f"{self.origin}{self.target}"

    @property
    def authority(self) -> str:
        """Host and port, the port left out where it is the scheme's."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        return f"{self.scheme}://{self.authority}"


def address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address that a host is written as; None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    ip = address(host)
    return host == "localhost" or host.endswith(".localhost") or (ip is not None and ip.is_loopback)


def is_internal(host: str) -> bool:
    """An address of a private network, of this host, or of its link, where clouds have their metadata services."""
    ip = address(host)
    return ip is not None and not ip.is_global
