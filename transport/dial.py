"""Connecting to a server, with failures told as grpc-go tells them."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

from transport.connecting import connect_unix
from transport.sockets import Link, PlainLink
from transport.status import Code, RpcError

if TYPE_CHECKING:
    from transport.tls import TlsContext

_TIMEOUT: Final = 20.0  # as grpc-go's least time for a connection


class Dialer(Protocol):
    """Makes a connected socket and the link over it. `scheme` and `authority` are those of the requests."""

    scheme: bytes
    authority: bytes

    async def dial(self) -> tuple[socket.socket, Link]:
        """Raises RpcError, UNAVAILABLE."""
        ...


class UnixDialer:
    scheme = b"http"
    authority = b"localhost"

    def __init__(self, path: str) -> None:
        self._path = path

    async def dial(self) -> tuple[socket.socket, Link]:
        sock = await _connected(socket.AF_UNIX, self._path, f"unix {self._path}")
        return sock, PlainLink(sock)


class TcpDialer:
    """Without `tls` everybody on the way can read and change what is said."""

    def __init__(self, host: str, port: int, tls: Callable[[], TlsContext] | None) -> None:
        self._host, self._port, self._tls = host, port, tls
        self.scheme = b"http" if tls is None else b"https"
        self.authority = f"[{host}]:{port}".encode() if ":" in host else f"{host}:{port}".encode()

    async def dial(self) -> tuple[socket.socket, Link]:
        """Tries the host's addresses in the resolver's order."""
        name = self.authority.decode()
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise connection_error(f"Error while dialing: dial tcp: lookup {self._host}: {error.strerror}") from error
        except UnicodeError as error:  # IDNA takes no empty and no overlong labels
            raise connection_error(f"Error while dialing: dial tcp: lookup {self._host}: no such host") from error
        failure: RpcError | None = None
        for family, _, _, _, address in found:
            try:
                sock = await _connected(family, address, f"tcp {name}")
            except RpcError as error:
                failure = error
                continue
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return sock, PlainLink(sock) if self._tls is None else self._tls().link(sock, server=False)
            except BaseException:
                sock.close()
                raise
        raise failure or connection_error(f"Error while dialing: dial tcp {name}: no address")


async def _connected(family: int, address: tuple[Any, ...] | str, name: str) -> socket.socket:
    try:
        async with asyncio.timeout(_TIMEOUT):
            return await (connect_unix(address) if isinstance(address, str) else _connect_tcp(family, address))
    except OSError as error:  # TimeoutError is one
        reason = "i/o timeout" if isinstance(error, TimeoutError) else f"connect: {_reason(error)}"
        raise connection_error(f"Error while dialing: dial {name}: {reason}") from error


async def _connect_tcp(family: int, address: tuple[Any, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


def connection_error(text: str) -> RpcError:
    return RpcError(Code.UNAVAILABLE, f'connection error: desc = "transport: {text}"')


def _reason(error: OSError) -> str:
    return os.strerror(error.errno).lower() if error.errno else str(error)
