"""The address of a Workload API, as SPIFFE's libraries read it (SPIFFE Workload Endpoint, section 4)."""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import SplitResult, unquote, urlsplit

from operations.errors import InvalidArgument


def parse_address(address: str) -> str | tuple[str, int]:
    """The path of `unix:///path`, or IP and port of `tcp://IP:port`. Raises InvalidArgument.

    A relative path, `unix://path`, counts from the working directory, as in SPIFFE's libraries.
    """
    try:
        parts = urlsplit(address)
        port = parts.port if parts.scheme == "tcp" else None
    except ValueError as error:
        raise InvalidArgument(f"it is no URL: {error}") from error
    if parts.username is not None or parts.query or parts.fragment:
        raise InvalidArgument("it must have no user, query or fragment")
    if parts.scheme == "unix":
        return _path(address, parts)
    if parts.scheme != "tcp":
        raise InvalidArgument("it must begin with unix:// or tcp://")
    if parts.path or port is None:
        raise InvalidArgument("it must be tcp://IP:port")
    try:
        return str(ip_address(parts.hostname or "")), port
    except ValueError as error:
        raise InvalidArgument("it must be tcp://IP:port, and no name") from error


def _path(address: str, parts: SplitResult) -> str:
    if not address.startswith(("unix:/", "unix://")):
        raise InvalidArgument("it must be unix:// and a path")
    path = unquote(f"{parts.netloc}{parts.path}")
    if not path or path == "/":
        raise InvalidArgument("it must name a socket, such as unix:///run/spire/agent.sock")
    return path
