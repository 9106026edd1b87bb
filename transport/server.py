"""Listens, accepts, and hands connections to their handlers."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from operations.errors import ConfigurationError, SpireError, TemporarilyUnavailable
from transport import unix
from transport.limits import SERVER_LIMITS, Limits
from transport.peer import Peer
from transport.router import Router
from transport.server_connection import ServerConnection
from transport.sockets import Link, PlainLink, SocketStream

if TYPE_CHECKING:
    from transport.tls import TlsContext

_log: Final = logging.getLogger("transport")
_ACCEPT_BURST: Final = 64
_ACCEPT_PAUSE: Final = 0.5
_SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_OTHER_DESCRIPTORS: Final = 1000  # for files, /proc, the datastore and connections of our own

# Gives the link over a socket just accepted, and what is known of its peer before a handshake.
_Opener = Callable[[socket.socket], tuple[Link, Peer]]


class _Listener:
    """One listening socket and the connections it brought."""

    def __init__(self, sock: socket.socket, open_link: _Opener, router: Router, limits: Limits) -> None:
        self._socket = sock
        self._open_link = open_link
        self._router = router
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._shaking: set[SocketStream] = set()
        self._accepting = False
        self._short = False  # of descriptors, or at the limit; said once
        self._resume: asyncio.TimerHandle | None = None
        self.connections: set[ServerConnection] = set()
        self.gone = asyncio.Event()
        self._listen()

    def close(self) -> None:
        self._pause()
        if self._resume is not None:
            self._resume.cancel()
        self._socket.close()
        self._note()

    def cut_off(self) -> None:
        """Ends what is still there after `close`."""
        for stream in list(self._shaking):
            stream.abort()
        for connection in list(self.connections):
            connection.abort("the server has stopped")

    def _listen(self) -> None:
        self._resume = None
        if not self._accepting and self._socket.fileno() != -1:
            self._accepting = True
            self._loop.add_reader(self._socket.fileno(), self._accept)

    def _pause(self) -> None:
        if self._accepting:
            self._accepting = False
            self._loop.remove_reader(self._socket.fileno())

    def _accept(self) -> None:
        for _ in range(_ACCEPT_BURST):
            if len(self._shaking) + len(self.connections) >= self._limits.connections:
                self._complain(f"{self._limits.connections} connections are open")
                self._pause()  # until one of them ends
                return
            try:
                sock, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                self._short = False
                return
            except OSError as error:
                self._wait(error)
                return
            try:
                self._start(sock)
            except OSError as error:
                sock.close()
                if error.errno in _SHORTAGES:
                    self._wait(error)
                    return
                _log.debug("a connection was refused: %s", error)  # who connects and goes must not fill the log
            except SpireError as error:
                sock.close()
                _log.warning("a connection was refused: %s", error)

    def _wait(self, error: OSError) -> None:
        """Without descriptors, accept fails at once and the socket stays readable: asking again has to wait."""
        self._complain(error.strerror or str(error))
        self._pause()
        self._resume = self._loop.call_later(_ACCEPT_PAUSE, self._listen)

    def _complain(self, reason: str) -> None:
        if not self._short:
            self._short = True
            _log.error("no more connections are accepted for now: %s", reason)

    def _start(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        link, peer = self._open_link(sock)

        def ready(stream: SocketStream) -> ServerConnection:
            known = Peer(peer.address, stream.link.peer_certificates, peer.process)
            connection = ServerConnection(stream, self._limits, self._router, known, self._ended)
            self._shaking.discard(stream)
            self.connections.add(connection)
            if self._socket.fileno() == -1:
                connection.drain()
            return connection

        def failed(error: Exception) -> None:
            self._shaking.discard(stream)
            _log.debug("the handshake with %s failed: %s", peer.address, error)
            self._note()

        stream = SocketStream(sock, link, ready, failed, self._limits.handshake)
        self._shaking.add(stream)

    def _ended(self, connection: ServerConnection) -> None:
        self.connections.discard(connection)
        self._note()

    def _note(self) -> None:
        if self._socket.fileno() == -1:
            if not self.connections and not self._shaking:
                self.gone.set()
        elif self._resume is None:
            self._listen()


class Server:
    """Serves a router on any number of TCP and Unix listeners."""

    def __init__(self, router: Router, *, limits: Limits = SERVER_LIMITS) -> None:
        self._router = router
        self._limits = limits
        self._listeners: list[_Listener] = []
        self._paths: list[tuple[str, int]] = []

    async def listen_tcp(self, host: str, port: int, tls: Callable[[], TlsContext]) -> int:
        """Returns the port, which matters when `port` is 0. `tls` is asked anew for each connection.

        Raises TemporarilyUnavailable while the address is taken, ConfigurationError for one that cannot be used.
        """
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except OSError as error:
            raise ConfigurationError(f"cannot listen on {host}:{port}: {error.strerror}; check bind_address") from error
        family, _, _, _, address = found[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setblocking(False)
            listener.bind(address)
            listener.listen(socket.SOMAXCONN)
        except OSError as error:
            listener.close()
            reason = os.strerror(error.errno or errno.EIO).lower()
            if error.errno == errno.EADDRINUSE:
                raise TemporarilyUnavailable(
                    f"cannot listen on {host}:{port}: {reason}; stop the other process or change bind_port"
                ) from error
            raise ConfigurationError(
                f"cannot listen on {host}:{port}: {reason}; check bind_address and bind_port"
            ) from error

        def open_link(sock: socket.socket) -> tuple[Link, Peer]:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            remote = sock.getpeername()
            return tls().link(sock, server=True), Peer(f"{remote[0]}:{remote[1]}")

        self._add(listener, open_link)
        bound: int = listener.getsockname()[1]
        return bound

    async def listen_unix(self, path: str, *, mode: int) -> None:
        """Listens at `path`, whose folder exists. Callers are known by process. Errors as of transport.unix.bind."""
        listener = unix.bind(path, mode)
        self._paths.append((path, unix.inode(path)))

        def open_link(sock: socket.socket) -> tuple[Link, Peer]:
            process = unix.caller(sock)
            return PlainLink(sock), Peer(f"{path} (pid {process.pid})", process=process)

        self._add(listener, open_link)

    async def drain(self, grace: float) -> None:
        """Stops listening, lets running calls end for `grace` seconds, then cuts them off."""
        for path, inode in self._paths:
            unix.remove(path, inode)
        self._paths.clear()
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener.close()
            for connection in list(listener.connections):
                connection.drain()
        waiting = asyncio.gather(*(listener.gone.wait() for listener in listeners))
        try:
            await asyncio.wait_for(waiting, grace)
        except TimeoutError:
            for listener in listeners:
                listener.cut_off()
            await asyncio.gather(*(listener.gone.wait() for listener in listeners))

    def _add(self, sock: socket.socket, open_link: _Opener) -> None:
        _allow_descriptors(self._limits.connections + _OTHER_DESCRIPTORS)
        self._listeners.append(_Listener(sock, open_link, self._router, self._limits))


def _allow_descriptors(count: int) -> None:
    """Raises the process's soft limit on open files to `count`, as far as the hard limit lets (getrlimit(2)).

    Programs in Go do so at their start, and their operators never had to.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
