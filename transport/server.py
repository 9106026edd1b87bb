"""A server of gRPC on TCP and Unix sockets."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from transport import unix
from transport.limits import SERVER_LIMITS, Limits
from transport.listener import Admit, Arrival, Listener, Opener, Served, admitting, bind_tcp, tcp_opener
from transport.peer import Peer
from transport.router import Router
from transport.server_connection import ServerConnection
from transport.sockets import PlainLink, SocketStream

if TYPE_CHECKING:
    from transport.proxy_protocol import Network
    from transport.tls import TlsContext

_OTHER_DESCRIPTORS: Final = 1000  # for files, /proc, the datastore and connections of our own


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
        self._add(listener, tcp_opener(tls, proxies))
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

        def open_link(sock: socket.socket) -> Arrival:
            process = unix.caller(sock, strangers=strangers)
            address = f"{path} (pid {process.pid})"
            link = PlainLink(sock) if tls is None else tls().link(sock, server=True)
            return Arrival(link, address, lambda: Peer(address, link.peer_certificates, process))

        # Each caller is held by a descriptor of its own (transport.peer.PidFd).
        self._add(listener, open_link, descriptors=2)

    async def drain(self, grace: float) -> None:
        """Stops listening, lets running calls end for `grace` seconds, then cuts them off."""
        for path, inode in self._paths:
            unix.remove(path, inode)
        self._paths.clear()
        listeners, self._listeners = self._listeners, []
        await asyncio.gather(*(listener.drain(grace) for listener in listeners))

    def _add(self, sock: socket.socket, open_link: Opener, *, descriptors: int = 1) -> None:
        _allow_descriptors(self._limits.connections * descriptors + _OTHER_DESCRIPTORS)
        admitted = open_link if self._admit is None else admitting(open_link, self._admit)
        self._listeners.append(Listener(sock, admitted, self._serve, self._limits))

    def _serve(self, stream: SocketStream, peer: Peer, ended: Callable[[Served], None]) -> ServerConnection:
        return ServerConnection(stream, self._limits, self._router, peer, ended)


def _allow_descriptors(count: int) -> None:
    """Raises the process's soft limit on open files to `count`, as far as the hard limit lets (getrlimit(2)).

    Programs in Go do so at their start, and their operators never had to.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
