"""Who is at the other end of a connection. Captured once, when the connection is made."""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from dataclasses import dataclass, field


class PidFd:
    """A descriptor of one process (pidfd_open(2)), which never is another's, whoever has its pid later.

    It is closed with the last reference to it.
    """

    __slots__ = ("_descriptor",)

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def of(cls, pid: int) -> PidFd:
        """Of the process that has the pid now. Raises OSError."""
        return cls(os.pidfd_open(pid))

    def fileno(self) -> int:
        return self._descriptor

    @property
    def ended(self) -> bool:
        """Whether all of its threads have ended. Its pid is another's only after that."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(0))

    def __del__(self, _close: Callable[[int], None] = os.close) -> None:
        _close(self._descriptor)


@dataclass(frozen=True, slots=True)
class Process:
    """The caller on a Unix socket, from SO_PEERCRED (unix(7)).

    What is found out about its pid is about it if it has not ended afterwards, as `pidfd` tells. `started` is field 22
    of /proc/PID/stat, in clock ticks after boot, read when the connection was made: where the kernel gives no `pidfd`,
    it tells a process from a later one with the same pid.
    """

    pid: int
    uid: int
    gid: int
    started: int
    pidfd: PidFd | None = field(default=None, compare=False, repr=False)


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
