"""What a host puts into a plugin's environment, and the one line by which the plugin says where it listens.

The line is `CORE-VERSION|APP-VERSION|unix|PATH|grpc|CERTIFICATE`, with `|false` behind it for a host that asks whether
its calls and ours could share one connection: they cannot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

CORE_PROTOCOL: Final = 1
PROTOCOL: Final = 1
"""The only versions that go-plugin and SPIRE have; a host of another says itself what it misses."""


@dataclass(frozen=True, slots=True)
class Handshake:
    """`client_certificate` is the PEM of a host that wants mutual TLS (go-plugin's AutoMTLS).

    `folder` is where it wants the socket; None leaves it to us.
    """

    client_certificate: str | None
    folder: str | None
    asks_for_sharing: bool

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self:
        return cls(
            client_certificate=environment.get("PLUGIN_CLIENT_CERT") or None,
            folder=environment.get("PLUGIN_UNIX_SOCKET_DIR") or None,
            asks_for_sharing=bool(environment.get("PLUGIN_MULTIPLEX_GRPC")),
        )

    def line(self, path: str, certificate: str) -> str:
        """`certificate` is DER in base64 without padding, empty without TLS."""
        end = "|false" if self.asks_for_sharing else ""
        return f"{CORE_PROTOCOL}|{PROTOCOL}|unix|{path}|grpc|{certificate}{end}\n"


def invited(type_: str, environment: Mapping[str, str]) -> bool:
    """Whether a host of plugins of this type started us: its cookie keeps people from running plugins by hand."""
    return environment.get(type_) == type_
