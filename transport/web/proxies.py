"""Which proxy a request goes through, by the variables that Go's programs know: HTTPS_PROXY, HTTP_PROXY, NO_PROXY."""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from operations.errors import ConfigurationError
from transport.web.urls import Url, address, is_loopback


@dataclass(frozen=True, slots=True)
class Proxy:
    """`authorization` is the value of Proxy-Authorization, if there is any."""

    host: str
    port: int
    authorization: str | None = None

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def proxy_for(url: Url, environment: Mapping[str, str]) -> Proxy | None:
    """Raises ConfigurationError for a proxy that cannot be used."""
    name = f"{url.scheme}_proxy"
    text = environment.get(name.upper()) or environment.get(name)
    if not text or is_loopback(url.host) or _is_exempt(url, environment):
        return None
    return _parse(text if "://" in text else f"http://{text}", name.upper())


def _parse(text: str, name: str) -> Proxy:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port or 80
    except ValueError as error:
        raise ConfigurationError(f"{name} is no URL: {error}") from error
    if parts.scheme != "http" or host is None:
        raise ConfigurationError(f"{name} cannot be used: give it as http://HOST:PORT")
    authorization = None
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = f"Basic {base64.b64encode(pair.encode()).decode()}"
    return Proxy(host, port, authorization)


def _is_exempt(url: Url, environment: Mapping[str, str]) -> bool:
    listed = environment.get("NO_PROXY") or environment.get("no_proxy") or ""
    return any(_covers(entry.strip().lower(), url) for entry in listed.split(",") if entry.strip())


def _covers(entry: str, url: Url) -> bool:
    """A name covers what is below it; one with a leading dot, only that; a network in CIDR notation, its addresses."""
    if entry == "*":
        return True
    ip = address(url.host)
    if ip is not None and "/" in entry:
        try:
            return ip in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    name, colon, port = entry.rpartition(":")
    if colon and port.isdecimal() and ("]" in name or ":" not in name):
        if int(port) != url.port:
            return False
        entry = name
    entry = entry.strip("[]").removeprefix("*")
    if entry.startswith("."):
        return url.host.endswith(entry)
    return url.host == entry or url.host.endswith(f".{entry}")
