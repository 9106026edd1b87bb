"""A server of gRPC on TCP and Unix sockets."""

from __future__ import annotations

import asyncio
import functools
import resource
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from operations.errors import TemporarilyUnavailable
from transport import engine, unix
from transport.limits import SERVER_LIMITS, Limits
from transport.listener import Admit, Arrival, Listener, Opener, Serve, Served, admitting, bind_tcp, tcp_opener
from transport.peer import Peer, Process
from transport.router import Router
from transport.server_connection import ServerConnection
from transport.shares import Callers, Share
from transport.sockets import Link, PlainLink, SocketStream

if TYPE_CHECKING:
    from transport.proxy_protocol import Network
    from transport.tls import TlsContext

_OTHER_DESCRIPTORS: Final = 1000  # for files, /proc, the datastore and connections of our own
_FEWEST: Final = 16


class Server:
    """Serves a router on any number of TCP and Unix listeners."""

    def __init__(self, router: Router, *, limits: Limits = SERVER_LIMITS, admit: Admit | None = None) -> None:
        """Without `admit`, everybody may connect, and each call is judged where it is handled."""
        self._router = router
        self._limits = limits
        self._admit = admit
        self._listeners: list[Listener] = []
        self._paths: list[tuple[str, int]] = []

    async def listen_tcp(
        self,
        host: str,
        port: int,
        tls: Callable[[], TlsContext],
        *,
        proxies: Sequence[Network] = (),
        settings: str = "bind_address and bind_port",
    ) -> int:
        """Returns the port, which matters when `port` is 0. `tls` is asked anew for each connection.

        Callers from `proxies` may say by the PROXY protocol for whom they speak. Raises TemporarilyUnavailable while
        the address is taken, ConfigurationError for one that cannot be used; both name the `settings` to change.
        """
        listener = await bind_tcp(host, port, settings)
        limits = self._allowed()
        self._add(listener, tcp_opener(tls, proxies), functools.partial(self._serve, limits), limits)
        bound: int = listener.getsockname()[1]
        return bound

    async def listen_unix(
        self, path: str, *, mode: int, strangers: bool = False, tls: Callable[[], TlsContext] | None = None
    ) -> None:
        """Listens at `path`, whose folder exists. Callers are known by process. Errors as of transport.unix.bind.

        With `strangers`, processes of other PID namespaces, known by their user alone, are served too: where the
        socket's permissions, or certificates, are all that is asked. `tls` is asked anew for each connection.
        """
        listener = unix.bind(path, mode)
        self._paths.append((path, unix.inode(path)))

        # Each caller is held by a descriptor of its own (transport.peer.PidFd).
        limits = self._allowed(descriptors=2)
        callers = Callers(limits)

        def open_link(sock: socket.socket) -> Arrival:
            if (share := callers.full(unix.credentials(sock)[0])) is not None:
                sock.send(_no_more(share))
                raise ConnectionRefusedError("its process has its share of the connections")
            process = unix.caller(sock, strangers=strangers)
            address = f"{path} (pid {process.pid})"
            link = PlainLink(sock) if tls is None else tls().link(sock, server=True)
            peer = functools.partial(_caller, link, address, process)
            return Arrival(link, address, peer, callers.turn(process))

        self._add(listener, open_link, functools.partial(self._serve_caller, limits, callers), limits)

    async def drain(self, grace: float) -> None:
        """Stops listening, lets running calls end for `grace` seconds, then cuts them off."""
        for path, inode in self._paths:
            unix.remove(path, inode)
        self._paths.clear()
        listeners, self._listeners = self._listeners, []
        await asyncio.gather(*(listener.drain(grace) for listener in listeners))

    def _add(self, sock: socket.socket, open_link: Opener, serve: Serve, limits: Limits) -> None:
        admitted = open_link if self._admit is None else admitting(open_link, self._admit)
        self._listeners.append(Listener(sock, admitted, serve, limits))

    def _serve(
        self, limits: Limits, stream: SocketStream, peer: Peer, ended: Callable[[Served], None]
    ) -> ServerConnection:
        return ServerConnection(stream, limits, self._router, peer, ended)

    def _serve_caller(
        self, limits: Limits, callers: Callers, stream: SocketStream, peer: Peer, ended: Callable[[Served], None]
    ) -> ServerConnection:
        """A process over a Unix socket. Raises TemporarilyUnavailable when it has its share of the connections."""
        held = None if peer.process is None else callers.of(peer.process)
        if held is None:
            return ServerConnection(stream, limits, self._router, peer, ended)
        if not held.connections.fits():
            stream.write(_no_more(held.connections))
            raise TemporarilyUnavailable("its process has its share of the connections")
        held.connections.take()

        def gone(connection: Served) -> None:
            held.connections.take(-1)
            ended(connection)

        return ServerConnection(stream, limits, self._router, peer, gone, held)

    def _allowed(self, *, descriptors: int = 1) -> Limits:
        """The limits, with no more connections than there are descriptors for, each of which needs so many."""
        allowed = _allow_descriptors(self._limits.connections * descriptors + _OTHER_DESCRIPTORS)
        spare = max(allowed - _OTHER_DESCRIPTORS, allowed // 2, _FEWEST)
        return replace(self._limits, connections=min(self._limits.connections, spare // descriptors))


def _caller(link: Link, address: str, process: Process) -> Peer:
    return Peer(address, link.peer_certificates, process)


def _no_more(share: Share) -> bytes:
    return engine.farewell(engine.ENHANCE_YOUR_CALM, f"too many connections are open: {share}".encode())


def _allow_descriptors(count: int) -> int:
    """Raises the process's soft limit on open files to `count`, as far as the hard limit lets (getrlimit(2)).

    Returns the limit. Programs in Go raise it at their start, and their operators never had to.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return wanted if soft == resource.RLIM_INFINITY else soft
