"""Who is at the other end of a connection. Captured once, when the connection is made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Process:
    """The caller on a Unix socket, from SO_PEERCRED (unix(7)).

    `started` is field 22 of /proc/PID/stat, in clock ticks after boot, read when the connection was made: it tells a
    process from a later one with the same pid.
    """

    pid: int
    uid: int
    gid: int
    started: int


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a connection.

    `address` is for logs. `certificates` is the chain the peer sent over TLS, DER, leaf first, its private key proven
    by the handshake and nothing else checked; empty when it sent none. `process` is set on Unix sockets.
    """

    address: str
    certificates: tuple[bytes, ...] = ()
    process: Process | None = None


def address_text(host: str, port: int) -> str:
    """`host:port`, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
