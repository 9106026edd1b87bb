"""Non-blocking sockets, plain or under TLS, driven by the event loop.

A `Link` is what knows how to move bytes: the plain socket here, OpenSSL's in transport.tls, and another may stand
beside them, for a private key that this process does not hold. `SocketStream` drives any of them.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from transport.limits import Limits

if TYPE_CHECKING:
    from transport.shares import Turn

WRITE_SIZE: Final = 16 * 1024
LINGER: Final = 5.0


class WantRead(Exception):
    """Call again when the socket can be read."""


class WantWrite(Exception):
    """Call again when the socket can be written."""


class WantTime(Exception):
    """Call again when `done` is: the handshake waits for something else than the socket, a token's signature say."""

    def __init__(self, done: asyncio.Future[None]) -> None:
        super().__init__()
        self.done = done


class Link(Protocol):
    """Moves bytes over one connected non-blocking socket. Besides WantRead and WantWrite it raises OSError."""

    def handshake(self) -> None:
        """Raises WantTime too."""
        ...

    def receive(self, size: int) -> bytes:
        """At least one byte, or none at the end."""
        ...

    def buffered(self) -> bool:
        """Whether bytes may wait inside the link, of which the selector knows nothing."""
        ...

    def send(self, data: memoryview) -> int: ...
    def shutdown(self) -> None:
        """Says goodbye as far as that goes at once; raises nothing."""
        ...

    @property
    def peer_certificates(self) -> tuple[bytes, ...]:
        """DER, leaf first; empty when there are none."""
        ...


class StreamUser(Protocol):
    """What sits on a SocketStream."""

    def data_received(self, data: bytes) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...
    def connection_lost(self, error: OSError | None) -> None: ...


class PlainLink:
    """A socket without TLS."""

    peer_certificates: tuple[bytes, ...] = ()

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def handshake(self) -> None:
        pass

    def receive(self, size: int) -> bytes:
        try:
            return self._socket.recv(size)
        except BlockingIOError:
            raise WantRead from None

    def buffered(self) -> bool:
        return False

    def send(self, data: memoryview) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            raise WantWrite from None

    def shutdown(self) -> None:
        pass


class SocketStream:
    """Handshake, reading, buffered writing and closing of one connection.

    `ready` is called once, after the handshake, and returns the user; what it raises closes the connection.
    `failed` is called instead when the handshake did not come about. Owns the socket.
    """

    __slots__ = (
        "_buffer", "_closing", "_deferred", "_failed", "_fd", "_limits", "_link", "_loop", "_paused", "_ready",
        "_socket", "_timer", "_turn", "_user", "_writing",
    )  # fmt: skip

    def __init__(
        self,
        sock: socket.socket,
        link: Link,
        ready: Callable[[SocketStream], StreamUser],
        failed: Callable[[Exception], None],
        limits: Limits,
        turn: Turn | None = None,
    ) -> None:
        """Before each read `turn` is asked, where there is one, whether it is this connection's."""
        self._limits = limits
        self._turn = turn
        self._deferred = False
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = sock
        self._fd = sock.fileno()
        self._link: Link | None = link
        self._ready = ready
        self._failed = failed
        self._user: StreamUser | None = None
        self._buffer = bytearray()
        self._closing = self._paused = self._writing = False
        self._loop.add_reader(self._fd, self._on_readable)
        self._timer = self._loop.call_later(limits.handshake, self._time_out)
        self._loop.call_soon(self._handshake)

    @property
    def link(self) -> Link:
        if self._link is None:
            raise ConnectionError("the connection is closed")
        return self._link

    def write(self, data: bytes) -> None:
        if self._link is None or self._closing:
            return
        if self._buffer:
            self._buffer += data
        else:
            sent = self._send(memoryview(data))
            if sent < len(data):
                self._buffer += memoryview(data)[sent:]
                self._want_write(wanted=True)
        if len(self._buffer) > self._limits.write_buffer and not self._paused and self._user is not None:
            self._paused = True
            self._user.pause_writing()

    def close(self) -> None:
        """Closes when all has been written, or after LINGER seconds with a peer that does not read."""
        if self._closing:
            return
        self._closing = True
        if self._buffer:
            self._timer = self._loop.call_later(LINGER, self._end, None)
        else:
            self._end(None)

    def abort(self, error: OSError | None = None) -> None:
        """Closes at once."""
        if self._link is not None:
            self._closing = True
            self._buffer.clear()
            self._end(error)

    def _handshake(self) -> None:
        link = self._link
        if link is None or self._user is not None:
            return
        try:
            link.handshake()
        except WantRead:
            self._want_write(wanted=False)
            return
        except WantWrite:
            self._want_write(wanted=True)
            return
        except WantTime as waiting:
            # What arrives meanwhile is the link's own business.
            self._loop.remove_reader(self._fd)
            waiting.done.add_done_callback(self._go_on_shaking)
            return
        except OSError as error:
            self._end(error)
            return
        self._timer.cancel()
        self._want_write(wanted=False)
        try:
            self._user = self._ready(self)
        except Exception as error:  # noqa: BLE001 - a verifier's refusal, of any kind, goes to whoever waits for the connection
            self._refuse(error)
            return
        self._on_readable()

    def _go_on_shaking(self, _: asyncio.Future[None]) -> None:
        if self._link is not None:
            self._loop.add_reader(self._fd, self._on_readable)
            self._handshake()

    def _on_readable(self) -> None:
        user = self._user
        if user is None:
            self._handshake()
            return
        if not self._has_turn():
            return
        size = self._limits.read
        try:
            taken = 0
            while taken < size:
                if self._link is None:
                    return
                data = self._link.receive(size)
                if not data:
                    self._end(None)
                    return
                user.data_received(data)
                taken += len(data)
                if len(data) < size and not self._has_buffered():
                    return
        except (WantRead, WantWrite):
            return
        except OSError as error:
            self._end(error)
            return
        # There may be more, but what came is to be worked off first. What TLS has decrypted wakes no selector.
        if self._link is not None:
            self._loop.call_soon(self._on_readable)

    def _has_turn(self) -> bool:
        if self._turn is None or (not self._deferred and self._turn.take(self._read_after_others)):
            return True
        if not self._deferred:
            self._deferred = True
            self._loop.remove_reader(self._fd)
        return False

    def _read_after_others(self) -> None:
        self._deferred = False
        if self._link is not None:
            self._loop.add_reader(self._fd, self._on_readable)
            self._on_readable()

    def _has_buffered(self) -> bool:
        return self._link is not None and self._link.buffered()

    def _on_writable(self) -> None:
        if self._user is None:
            self._handshake()
            return
        with memoryview(self._buffer) as view:
            sent = self._send(view)
        if self._link is None:
            return
        del self._buffer[:sent]
        if not self._buffer:
            self._want_write(wanted=False)
        if self._paused and len(self._buffer) <= self._limits.write_buffer // 4:
            self._paused = False
            self._user.resume_writing()
        if self._closing and not self._buffer:
            self._end(None)

    def _send(self, view: memoryview) -> int:
        """How much went out. An error of the socket ends the connection, in the loop's next turn."""
        sent = 0
        link = self.link
        try:
            while sent < len(view):
                with view[sent : sent + WRITE_SIZE] as part:  # released, or an error's traceback would pin the buffer
                    sent += link.send(part)
        except (WantRead, WantWrite):
            pass
        except OSError as error:
            self._loop.call_soon(self._last_words, error)
            return len(view)
        return sent

    def _last_words(self, error: OSError) -> None:
        """Writing has failed; what the peer said before it closed, an alert or a GOAWAY, tells more than that."""
        self._on_readable()
        self._end(error)

    def _want_write(self, *, wanted: bool) -> None:
        if wanted == self._writing or self._link is None:
            return
        self._writing = wanted
        if wanted:
            self._loop.add_writer(self._fd, self._on_writable)
        else:
            self._loop.remove_writer(self._fd)

    def _time_out(self) -> None:
        self._end(TimeoutError("the handshake took too long"))

    def _end(self, error: OSError | None) -> None:
        user = self._user
        failed = self._failed
        if not self._release():
            return
        if user is not None:
            self._loop.call_soon(user.connection_lost, error)
        else:
            failed(error or ConnectionError("connection closed during the handshake"))

    def _refuse(self, error: Exception) -> None:
        failed = self._failed
        if self._release():
            failed(error)

    def _release(self) -> bool:
        """Frees the socket and every reference that could keep it; False when that was done before."""
        link, sock = self._link, self._socket
        if link is None or sock is None:
            return False
        self._timer.cancel()
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        link.shutdown()
        sock.close()
        self._link = self._socket = self._user = None
        self._ready = _never_ready
        self._failed = _ignore
        return True


def _never_ready(stream: SocketStream) -> StreamUser:
    raise ConnectionError("the connection is closed")


def _ignore(error: Exception) -> None:
    pass
