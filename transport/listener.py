"""One listening socket: accepts within limits, shakes hands, and hands connections to who serves them."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

from operations.errors import ConfigurationError, SpireError, TemporarilyUnavailable
from transport.limits import Limits
from transport.peer import Peer, address_text
from transport.sockets import Link, PlainLink, SocketStream, StreamUser

if TYPE_CHECKING:
    from transport.proxy_protocol import Network
    from transport.shares import Turn
    from transport.tls import TlsContext

_log: Final = logging.getLogger("transport")
_ACCEPT_BURST: Final = 1024  # in one turn of the loop, refusals
_ACCEPT_COST: Final = 16  # of a connection, in refusals
_ACCEPT_PAUSE: Final = 0.5
_SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Served(StreamUser, Protocol):
    """A connection that is being served. It says once, by the callback it was made with, that it has ended."""

    def drain(self) -> None:
        """Take nothing new, and end with the last answer."""
        ...

    def abort(self, reason: str) -> None: ...


Serve = Callable[[SocketStream, Peer, Callable[[Served], None]], Served]
"""Makes what serves a connection, given its stream, its peer and whom to tell of its end."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A socket just accepted: the link over it, and who is there. `peer` is asked after the handshake.

    `turn` is where the connection queues for being read.
    """

    link: Link
    address: str
    peer: Callable[[], Peer]
    turn: Turn | None = None


Opener = Callable[[socket.socket], Arrival]

Admit = Callable[[Peer], None]
"""Judges who has connected, after the handshake and before a byte of a call; what it raises ends the connection."""


def admitting(open_link: Opener, admit: Admit) -> Opener:
    """As `open_link`, for those alone whom `admit` lets in."""

    def open_judged(sock: socket.socket) -> Arrival:
        arrival = open_link(sock)

        def peer() -> Peer:
            found = arrival.peer()
            admit(found)
            return found

        return replace(arrival, peer=peer)

    return open_judged


class Listener:
    """One listening socket and the connections it brought."""

    def __init__(self, sock: socket.socket, open_link: Opener, serve: Serve, limits: Limits) -> None:
        self._socket = sock
        self._open_link = open_link
        self._serve = serve
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._shaking: set[SocketStream] = set()
        self._accepting = False
        self._short = False  # of descriptors, or at the limit; said once
        self._resume: asyncio.TimerHandle | None = None
        self.connections: set[Served] = set()
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

    async def drain(self, grace: float) -> None:
        """Stops listening, lets what runs end for `grace` seconds, then cuts it off."""
        self.close()
        for connection in list(self.connections):
            connection.drain()
        try:
            await asyncio.wait_for(self.gone.wait(), grace)
        except TimeoutError:
            self.cut_off()
            await self.gone.wait()

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
        left = _ACCEPT_BURST
        while left > 0:
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
            left -= 1
            try:
                self._start(sock)
                left -= _ACCEPT_COST
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
        arrival = self._open_link(sock)

        def ready(stream: SocketStream) -> Served:
            connection = self._serve(stream, arrival.peer(), self._ended)
            self._shaking.discard(stream)
            self.connections.add(connection)
            if self._socket.fileno() == -1:
                connection.drain()
            return connection

        def failed(error: Exception) -> None:
            self._shaking.discard(stream)
            _log.debug("the handshake with %s failed: %s", arrival.address, error)
            self._note()

        stream = SocketStream(sock, arrival.link, ready, failed, self._limits, arrival.turn)
        self._shaking.add(stream)

    def _ended(self, connection: Served) -> None:
        self.connections.discard(connection)
        self._note()

    def _note(self) -> None:
        if self._socket.fileno() == -1:
            if not self.connections and not self._shaking:
                self.gone.set()
        elif self._resume is None:
            self._listen()


async def bind_tcp(host: str, port: int, settings: str = "bind_address and bind_port") -> socket.socket:
    """A listening TCP socket; `settings` is what to change when there is none.

    Raises TemporarilyUnavailable while the address is taken, ConfigurationError for one that cannot be used.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {host}:{port}: {error.strerror}; check {settings}") from error
    # A name such as localhost means IPv4 to those who look for it, wherever there is both.
    family, _, _, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
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
            advice = f"stop the other process or change {settings}"
            raise TemporarilyUnavailable(f"cannot listen on {host}:{port}: {reason}; {advice}") from error
        raise ConfigurationError(f"cannot listen on {host}:{port}: {reason}; check {settings}") from error
    return listener


def tcp_opener(tls: Callable[[], TlsContext] | None, proxies: Sequence[Network] = ()) -> Opener:
    """Opens links over TCP, under TLS if there is any; those from `proxies` may begin with a PROXY header."""

    def link_over(sock: socket.socket) -> Link:
        return PlainLink(sock) if tls is None else tls().link(sock, server=True)

    def open_link(sock: socket.socket) -> Arrival:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        host, port = sock.getpeername()[:2]
        address = address_text(host, port)
        link = link_over(sock)
        if proxies:
            # Most servers have no proxy before them.
            from transport.proxy_protocol import ProxiedLink, is_from

            if is_from(host, proxies):
                proxied = ProxiedLink(sock, link)
                return Arrival(proxied, address, lambda: Peer(proxied.source or address, proxied.peer_certificates))
        return Arrival(link, address, lambda: Peer(address, link.peer_certificates))

    return open_link
