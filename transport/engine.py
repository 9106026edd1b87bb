"""One HTTP/2 connection (RFC 9113) without I/O, on libnghttp2: bytes in, events out; calls in, bytes out.

The engine knows nothing of gRPC, sockets or asyncio. Header blocks are bytes as nghttp2.c lays them out; `pack` makes
them and `unpack` reads them, and both ends keep the blocks that repeat.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final

from transport._nghttp2 import ffi, lib
from transport.limits import Limits

HEADERS: Final = 1  # value: 1 when the peer's side ends here; payload: header block
DATA: Final = 2  # payload: bytes of the body
END: Final = 3  # the peer's side ended with DATA
CLOSED: Final = 4  # value: HTTP/2 error code
GOAWAY: Final = 5  # value: error code; payload: debug data; streams it left out are closed as refused
SENT: Final = 6  # all that was given for the stream has been framed
SETTINGS: Final = 7
PONG: Final = 8

Event = tuple[int, int, int, bytes]  # kind, stream, value, payload

NO_ERROR: Final = 0
INTERNAL_ERROR: Final = 2
REFUSED_STREAM: Final = 7
CANCEL: Final = 8
ENHANCE_YOUR_CALM: Final = 11

SEND_CHUNK: Final = 128 * 1024

_EVENT: Final = struct.Struct("=IiII")
_LENGTHS: Final = struct.Struct("=II")
_unpack_event: Final = _EVENT.unpack_from
_NO_HEADERS: Final = b""

_LONG: Final = struct.Struct(">I")
_SETTINGS_FRAME, _GOAWAY_FRAME = 4, 7
_ENABLE_PUSH, _MAX_STREAMS, _INITIAL_WINDOW, _MAX_HEADER_LIST = 2, 3, 4, 6


class ProtocolError(Exception):
    """The peer broke HTTP/2 so that the connection cannot go on. What `send` still has tells the peer why."""


def pack(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Lays out header fields, names in lower case, as a header block."""
    return b"".join(_LENGTHS.pack(len(name), len(value)) + name + value for name, value in fields)


def unpack(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The fields of a header block, in order."""
    at = 0
    while at < len(block):
        name_length, value_length = _LENGTHS.unpack_from(block, at)
        value_at = at + _LENGTHS.size + name_length
        yield block[at + _LENGTHS.size : value_at], block[value_at : value_at + value_length]
        at = value_at + value_length


def farewell(error: int, debug: bytes) -> bytes:
    """All that a server says on a connection that it does not take on: SETTINGS and GOAWAY (RFC 9113, 6.5 and 6.8)."""
    reason = _LONG.pack(0) + _LONG.pack(error) + debug
    return _frame(_SETTINGS_FRAME, b"") + _frame(_GOAWAY_FRAME, reason)


def _frame(kind: int, payload: bytes) -> bytes:
    """Of the connection, without flags (RFC 9113, section 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes((kind, 0)) + _LONG.pack(0) + payload


class Engine:
    """One end of a connection. Use from one thread."""

    __slots__ = ("_connection", "_session")

    def __init__(self, *, server: bool, limits: Limits) -> None:
        made = lib.h2_new(server, limits.headers, 1000, 33)
        if not made:
            raise MemoryError
        self._connection = ffi.gc(made, lib.h2_free)
        self._session = made.session
        settings = [(_INITIAL_WINDOW, limits.stream_window), (_MAX_HEADER_LIST, limits.headers)]
        settings.append((_MAX_STREAMS, limits.streams) if server else (_ENABLE_PUSH, 0))
        lib.nghttp2_submit_settings(self._session, 0, ffi.new("nghttp2_settings_entry[]", settings), len(settings))
        lib.nghttp2_session_set_local_window_size(self._session, 0, 0, limits.connection_window)

    def receive(self, data: bytes) -> Iterator[list[Event]]:
        """Takes bytes from the peer; yields the events in batches of bounded size. Raises ProtocolError."""
        connection, length, at = self._connection, len(data), 0
        with ffi.from_buffer(data) as view:
            while at < length:
                taken = lib.h2_receive(connection, view + at if at else view, length - at)
                if connection.events.length:
                    yield self._take_events()
                if taken < 0:
                    raise self._error(taken)
                at += taken

    def send(self) -> tuple[bytes, list[Event]]:
        """Up to about SEND_CHUNK bytes for the peer, and what their framing brought about. Raises ProtocolError."""
        connection = self._connection
        failed = lib.h2_send(connection, SEND_CHUNK)
        if failed:
            raise self._error(failed)
        length = connection.output.length
        data = b""
        if length:
            data = ffi.buffer(connection.output.bytes, length)[:]
            lib.h2_clear_output(connection)
        return data, self._take_events() if connection.events.length else []

    def start(self, stream: int, headers: bytes, body: bytes = b"", *, end: bool = False, trailers: bytes = b"") -> int:
        """Starts a response to `stream`, or a request when `stream` is 0.

        Returns the stream, or 0 when there is no such stream any more.
        """
        started = lib.h2_start(
            self._connection, stream, headers, len(headers), body, len(body), end, trailers, len(trailers)
        )
        if started < 0 and not stream:
            raise self._error(started)
        return max(started, 0)

    def more(self, stream: int, body: bytes, *, end: bool = False, trailers: bytes = b"") -> None:
        """Adds to the body of a started stream; does nothing when the stream is gone."""
        lib.h2_continue(self._connection, stream, body, len(body), end, trailers, len(trailers))

    def consumed(self, stream: int, size: int) -> None:
        """Lets the peer send `size` more bytes on the stream."""
        lib.nghttp2_session_consume_stream(self._session, stream, size)

    def reset(self, stream: int, error: int) -> None:
        lib.nghttp2_submit_rst_stream(self._session, 0, stream, error)

    def ping(self) -> None:
        lib.nghttp2_submit_ping(self._session, 0, b"\0" * 8)

    def announce_shutdown(self) -> None:
        """First half of a graceful end: GOAWAY with the highest stream id (RFC 9113, section 6.8)."""
        lib.nghttp2_submit_shutdown_notice(self._session)

    def go_away(self) -> None:
        """Second half: GOAWAY with the last stream that was taken on. The connection ends with its last stream."""
        last = lib.nghttp2_session_get_last_proc_stream_id(self._session)
        lib.nghttp2_submit_goaway(self._session, 0, last, NO_ERROR, b"graceful_stop", 13)

    def terminate(self, error: int) -> None:
        """GOAWAY, after which the connection takes nothing more."""
        lib.nghttp2_session_terminate_session(self._session, error)

    @property
    def alive(self) -> bool:
        session = self._session
        return bool(lib.nghttp2_session_want_read(session) or lib.nghttp2_session_want_write(session))

    @property
    def queued_frames(self) -> int:
        """Frames that wait to be sent, without DATA."""
        return lib.nghttp2_session_get_outbound_queue_size(self._session)

    def _take_events(self) -> list[Event]:
        buffer = self._connection.events
        raw = ffi.buffer(buffer.bytes, buffer.length)[:]
        lib.h2_clear_events(self._connection)
        events: list[Event] = []
        at, end = 0, len(raw)
        while at < end:
            kind, stream, value, length = _unpack_event(raw, at)
            at += 16
            events.append((kind, stream, value, raw[at : at + length] if length else b""))
            at += length
        return events

    @staticmethod
    def _error(code: int) -> ProtocolError:
        return ProtocolError(ffi.string(lib.nghttp2_strerror(code)).decode())
