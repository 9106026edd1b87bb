"""go-plugin's handshake: what the host puts into the plugin's environment, and the one line that comes back.

The line is `CORE-VERSION|APP-VERSION|NETWORK|ADDRESS|PROTOCOL|…`. Failures are told in go-plugin's words.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from operations.errors import InvalidArgument
from operations.quoting import quote

CORE_PROTOCOL = 1
PROTOCOL = 1
LONGEST_LINE = 64 * 1024

_SHOWN = 256
_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")
_LONGEST_PATH = 107  # sun_path without its final NUL (unix(7))


@dataclass(frozen=True, slots=True)
class Address:
    """Where a plugin listens: the path of a Unix socket, or `host:port` on this machine."""

    network: Literal["unix", "tcp"]
    address: str


def environment(plugin_type: str) -> Mapping[str, str]:
    """What a plugin of that type looks for. The cookie keeps people from running plugins by hand; it is no secret."""
    return {
        plugin_type: plugin_type,
        "PLUGIN_MIN_PORT": "10000",
        "PLUGIN_MAX_PORT": "25000",
        "PLUGIN_PROTOCOL_VERSIONS": str(PROTOCOL),
    }


def parse(line: str) -> Address:
    """Raises InvalidArgument."""
    parts = line.strip().split("|")
    if len(parts) < 4:
        raise InvalidArgument(
            f"Unrecognized remote plugin message: {quote(line.strip()[:_SHOWN])}: this is no SPIRE plugin, or it "
            "printed something before the handshake"
        )
    core = _number(parts[0], "error parsing core protocol version")
    if core != CORE_PROTOCOL:
        raise InvalidArgument(
            f"incompatible core API version with plugin. Plugin version: {core}, Core version: {CORE_PROTOCOL}"
        )
    version = _number(parts[1], "Error parsing protocol version")
    if version != PROTOCOL:
        raise InvalidArgument(
            f"incompatible API version with plugin. Plugin version: {version}, Client versions: [{PROTOCOL}]"
        )
    address = _address(parts[2], parts[3])
    protocol = parts[4] if len(parts) > 4 else "netrpc"
    if protocol != "grpc":
        raise InvalidArgument(f"unsupported plugin protocol {quote(protocol[:_SHOWN])}. Supported: [grpc]")
    return address


def _number(text: str, fault: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise InvalidArgument(f"{fault}: {quote(text[:_SHOWN])} is no number")
    return int(text)


def _address(network: str, address: str) -> Address:
    if network == "unix":
        if not address or "\0" in address or len(address.encode()) > _LONGEST_PATH:
            raise InvalidArgument(f"the plugin's address {quote(address[:_SHOWN])} is no path of a Unix socket")
        return Address("unix", address)
    if network == "tcp":
        host, _, port = address.rpartition(":")
        if not (_is_loopback(host) and port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):
            raise InvalidArgument(
                f"the plugin's address {quote(address[:_SHOWN])} is not one of this machine's own (127.0.0.1:PORT): "
                "calls to plugins are not encrypted"
            )
        return Address("tcp", address)
    raise InvalidArgument(f"unknown address type: {quote(network[:_SHOWN])}")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
