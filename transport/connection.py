"""A gRPC connection on a SocketStream: what client and server have in common.

Writing is gathered: whatever handlers and events bring about in one turn of the loop is framed and sent once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import Final

from transport import engine
from transport.engine import Engine, Event, ProtocolError
from transport.limits import Limits
from transport.sockets import SocketStream
from transport.status import Code, RpcError
from transport.wire import Deframer, frame

_OVERHEAD: Final = 64  # what an unread message costs besides its bytes: many small ones are to count as what they are


class Stream:
    """One call: messages in, messages out, both with flow control.

    `ended` says that the peer sends nothing more, `finished` that we do not, `closed` that the stream is gone.
    """

    __slots__ = (
        "_deframer", "_held", "_messages", "_queued", "_room", "_uncredited", "_waiter", "closed", "connection",
        "ended", "finished", "id", "started",
    )  # fmt: skip

    def __init__(self, connection: Connection, stream_id: int) -> None:
        self.connection = connection
        self.id = stream_id
        self.started = self.ended = self.finished = self.closed = False
        self._deframer = Deframer(connection.limits.message)
        self._messages: deque[bytes] = deque()
        self._held = 0  # bytes of ours in the connection's count of what is unread
        self._uncredited = 0  # bytes received since the peer's window was last widened
        self._queued = 0  # bytes given to the engine since it last had framed all
        self._waiter: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None

    # -- receiving

    def limit_messages(self, largest: int) -> None:
        """Before any has begun: those of more bytes are refused."""
        self._deframer = Deframer(largest)

    def set_encoding(self, name: str) -> None:
        self._deframer.encoding = name

    def on_data(self, data: bytes) -> None:
        """Raises RpcError for a message that is refused."""
        connection = self.connection
        self._uncredited += len(data)
        before = len(self._messages)
        self._messages.extend(self._deframer.feed(data))
        size = len(data) + _OVERHEAD * (len(self._messages) - before)
        self._held += size
        connection.hold(size)
        if self._messages:
            self.wake()
        else:
            self._credit()

    def on_end(self) -> None:
        self.ended = True
        self.wake()

    def wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def take(self) -> bytes | None:
        """A message that has arrived, or None."""
        if not self._messages:
            return None
        message = self._messages.popleft()
        if not self.closed:
            size = len(message) + 5 + _OVERHEAD
            self._held -= size
            self.connection.release(size)
            if not self._messages:
                self._credit()
        return message

    async def wait(self) -> None:
        """Waits until there may be something new: a message, the end."""
        self._waiter = self.connection.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    @property
    def message_cut_off(self) -> bool:
        """Whether the peer ended within a message."""
        return self.ended and self._deframer.incomplete

    def _credit(self) -> None:
        """Widens the peer's window, in coarse steps. Unread messages hold it; an unfinished one does not."""
        if self._uncredited >= self.connection.limits.stream_window // 4 and not self.ended:
            self.connection.engine.consumed(self.id, self._uncredited)
            self._uncredited = 0
            self.connection.kick()

    # -- sending

    def put(self, message: bytes, *, headers: bytes, end: bool = False, trailers: bytes = b"") -> None:
        """Hands a message to the engine; `headers` go before the first one."""
        self._give(frame(message), headers, end=end, trailers=trailers)

    def end(self, *, headers: bytes, trailers: bytes = b"") -> None:
        self._give(b"", headers, end=True, trailers=trailers)

    def _give(self, body: bytes, headers: bytes, *, end: bool, trailers: bytes) -> None:
        if self.finished or self.closed:
            return
        self.finished = end
        connection = self.connection
        self._queued += len(body)
        if self.started:
            connection.engine.more(self.id, body, end=end, trailers=trailers)
        else:
            self.started = True
            connection.engine.start(self.id, headers, body, end=end, trailers=trailers)
        connection.kick()

    @property
    def crowded(self) -> bool:
        """Whether the peer is slower than what is sent; then `drained` is to be awaited."""
        if self.closed:
            return False
        return self._queued > self.connection.limits.send_buffer or (self.connection.paused and not self.finished)

    async def drained(self) -> None:
        while self.crowded:
            self._room = self.connection.loop.create_future()
            try:
                await self._room
            finally:
                self._room = None

    @property
    def unsent(self) -> bool:
        return self._queued > 0

    def on_sent(self) -> None:
        self._queued = 0
        self.look_again()

    def look_again(self) -> None:
        """There may be room for who awaits `drained`."""
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def reset(self, error: int) -> None:
        if not self.closed:
            self.finished = True
            self.connection.engine.reset(self.id, error)
            self.connection.kick()
            self.on_sent()  # nothing more goes out; who waits for room need not wait for the peer

    def on_closed(self, error: int) -> None:
        """The stream is gone. Overridden to end the call."""
        self.closed = self.ended = True
        self.connection.release(self._held)
        self._held = 0
        self.on_sent()
        self.wake()


class Connection:
    """Base of both ends. Subclasses say what a HEADERS event and a lost connection mean."""

    server: bool

    def __init__(self, stream: SocketStream, limits: Limits) -> None:
        self.loop: Final = asyncio.get_running_loop()
        self.limits: Final = limits
        self.engine: Final = Engine(server=self.server, limits=limits)
        self.streams: dict[int, Stream] = {}
        self.unread = 0
        self.paused = False
        self.closed = False
        self._socket = stream
        self._flush_due = False
        self._heard = self.loop.time()
        self._pinged_at: float | None = None
        self._preface = self.loop.call_later(limits.handshake, self._time_out)
        self._keepalive: asyncio.TimerHandle | None = None
        if limits.keepalive is not None:
            self._keepalive = self.loop.call_later(limits.keepalive, self._check_alive)
        self.kick()

    # -- to be given by subclasses

    def on_headers(self, stream_id: int, block: bytes, *, end: bool) -> None:
        raise NotImplementedError

    def on_settings(self) -> None:
        """The peer's SETTINGS came: it speaks HTTP/2."""

    def on_go_away(self, error: int, debug: bytes) -> None:
        pass

    def on_refused(self, stream: Stream, error: RpcError) -> None:
        """A message of the peer was refused."""
        raise NotImplementedError

    # -- called by streams

    def hold(self, size: int) -> None:
        """So many bytes wait to be read. Raises RpcError when they are too many; they count even so."""
        self.unread += size
        if self.unread > self.limits.unread:
            raise RpcError(Code.RESOURCE_EXHAUSTED, "too much unread data on the connection")

    def release(self, size: int) -> None:
        self.unread -= size

    # -- called by SocketStream

    def data_received(self, data: bytes) -> None:
        if self.closed:
            return
        self._heard = self.loop.time()
        try:
            for events in self.engine.receive(data):
                self._dispatch(events)
                # Each stream may have its headers and its end waiting; more than that is of the peer's own making.
                if self.paused and self.engine.queued_frames > self.limits.control_frames + 2 * len(self.streams):
                    self.abort("the peer does not read")
                    return
        except ProtocolError as error:
            self._fail(error)
            return
        self.kick()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        for stream in self.streams.values():
            stream.look_again()
        self.kick()

    def connection_lost(self, error: OSError | None) -> None:
        if not self.closed:
            self.closed = True
            self.on_lost(f"error reading from server: {error or 'EOF'}")
        self._preface.cancel()
        if self._keepalive is not None:
            self._keepalive.cancel()
        for stream in list(self.streams.values()):
            stream.on_closed(engine.CANCEL)
        self.streams.clear()

    def on_lost(self, reason: str) -> None:
        """The connection can carry no more; called before its streams are closed."""

    # -- sending

    def kick(self) -> None:
        """Asks for a flush in this turn of the loop."""
        if not self._flush_due and not self.closed:
            self._flush_due = True
            self.loop.call_soon(self.flush)

    def flush(self) -> None:
        self._flush_due = False
        if self.closed:
            return
        try:
            while not self.paused:
                data, events = self.engine.send()
                if data:
                    self._socket.write(data)
                if events:
                    self._dispatch(events)
                if len(data) < engine.SEND_CHUNK:
                    break
        except ProtocolError as error:
            self._fail(error)
            return
        if not self.paused and not self.engine.alive:
            self.close()

    def close(self) -> None:
        """Ends the connection when what was written has gone out."""
        if not self.closed:
            self.closed = True
            self.on_lost("the connection is closing")
            self._socket.close()

    def abort(self, reason: str) -> None:
        if not self.closed:
            self.closed = True
            self.on_lost(reason)
            self._socket.abort()

    # -- inside

    def _dispatch(self, events: list[Event]) -> None:
        streams = self.streams
        for kind, stream_id, value, payload in events:
            if kind == engine.HEADERS:
                self.on_headers(stream_id, payload, end=bool(value))
                continue
            stream = streams.get(stream_id)
            if stream is None:
                self._control(kind, value, payload)
            elif kind == engine.DATA:
                if not stream.finished or not self.server:
                    try:
                        stream.on_data(payload)
                    except RpcError as error:
                        self.on_refused(stream, error)
            elif kind == engine.END:
                stream.on_end()
            elif kind == engine.CLOSED:
                del streams[stream_id]
                stream.on_closed(value)
            elif kind == engine.SENT:
                stream.on_sent()

    def _control(self, kind: int, value: int, payload: bytes) -> None:
        if kind == engine.SETTINGS:
            self._preface.cancel()
            self.on_settings()
        elif kind == engine.GOAWAY:
            self.on_go_away(value, payload)

    def _fail(self, error: ProtocolError) -> None:
        """Sends the GOAWAY that says why, as far as it goes, and ends."""
        with contextlib.suppress(ProtocolError):
            data, _ = self.engine.send()
            self._socket.write(data)
        self.closed = True
        self.on_lost(str(error))
        self._socket.close()

    def _time_out(self) -> None:
        self.abort("no HTTP/2 preface came")

    def _check_alive(self) -> None:
        """Pings after a silence; ends the connection when the ping stays without any answer."""
        interval = self.limits.keepalive
        if self.closed or interval is None:
            return
        now = self.loop.time()
        if self._pinged_at is not None and self._heard <= self._pinged_at:
            self.abort("keepalive ping failed to receive ACK within timeout")
            return
        self._pinged_at = None
        wait = interval - (now - self._heard)
        if wait <= 0:
            wait = interval
            if self.server or self.streams:
                self._pinged_at = now
                self.engine.ping()
                self.kick()
                wait = self.limits.keepalive_timeout
        self._keepalive = self.loop.call_later(wait, self._check_alive)
