"""The client's end of a connection: calls out, answers in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from transport import engine
from transport.connection import Connection, Stream
from transport.engine import unpack
from transport.limits import Limits
from transport.sockets import SocketStream
from transport.status import Code, RpcError
from transport.wire import status_from

# As grpc-go maps them (http2ErrConvTab and HTTPStatusConvTab of its transport).
_HTTP2_ERRORS: Final = {
    0: ("NO_ERROR", Code.INTERNAL),
    1: ("PROTOCOL_ERROR", Code.INTERNAL),
    2: ("INTERNAL_ERROR", Code.INTERNAL),
    3: ("FLOW_CONTROL_ERROR", Code.RESOURCE_EXHAUSTED),
    4: ("SETTINGS_TIMEOUT", Code.INTERNAL),
    5: ("STREAM_CLOSED", Code.INTERNAL),
    6: ("FRAME_SIZE_ERROR", Code.INTERNAL),
    7: ("REFUSED_STREAM", Code.UNAVAILABLE),
    8: ("CANCEL", Code.CANCELLED),
    9: ("COMPRESSION_ERROR", Code.INTERNAL),
    10: ("CONNECT_ERROR", Code.INTERNAL),
    11: ("ENHANCE_YOUR_CALM", Code.RESOURCE_EXHAUSTED),
    12: ("INADEQUATE_SECURITY", Code.PERMISSION_DENIED),
    13: ("HTTP_1_1_REQUIRED", Code.INTERNAL),
}
_DEBUG_DATA_SHOWN: Final = 256
_HTTP_STATUSES: Final = {
    400: Code.INTERNAL,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.UNIMPLEMENTED,
    429: Code.UNAVAILABLE,
    502: Code.UNAVAILABLE,
    503: Code.UNAVAILABLE,
    504: Code.UNAVAILABLE,
}


class ClientCall(Stream):
    """One call at the client. `error` is its status once `done`; None is OK. `deadline` is in the loop's time."""

    __slots__ = ("deadline", "done", "error", "headers", "refused", "trailers")

    connection: ClientConnection

    def __init__(self, connection: ClientConnection, stream_id: int, deadline: float | None) -> None:
        super().__init__(connection, stream_id)
        self.deadline = deadline
        self.done = False
        self.refused = False  # the server has not worked on it: it may be sent again
        self.error: RpcError | None = None
        self.headers: dict[str, str] | None = None
        self.trailers: dict[str, str] = {}

    def on_headers(self, block: bytes, *, end: bool) -> None:
        fields = {name.decode("ascii", "replace"): value.decode("latin-1") for name, value in unpack(block)}
        if self.headers is None:
            if fields.get(":status", "").startswith("1"):
                return
            self.headers = fields
            self.set_encoding(fields.get("grpc-encoding", "identity"))
            refusal = _http_refusal(fields)
            if refusal is not None:
                self.finish(refusal)
                self.reset(engine.CANCEL)
                return
        if end:
            self.trailers = fields
            self.on_end()

    def on_end(self) -> None:
        super().on_end()
        if not self.done and not self.trailers:
            self.finish(RpcError(Code.INTERNAL, "server closed the stream without sending trailers"))
        elif not self.done:
            status = status_from(self.trailers)
            if status is None and self.message_cut_off:
                status = RpcError(Code.INTERNAL, "unexpected EOF")
            self.finish(status)

    def on_closed(self, error: int) -> None:
        if not self.done:
            self.refused = error == engine.REFUSED_STREAM and self.headers is None
            self.finish(self._closed_because(error))
        super().on_closed(error)

    def _closed_because(self, error: int) -> RpcError:
        lost = self.connection.lost
        if lost is not None:
            return RpcError(lost.code, lost.message)
        # The server's clock may be quicker than ours to see that the time is up.
        if error == engine.CANCEL and self.deadline is not None and self.connection.loop.time() >= self.deadline:
            return deadline_exceeded(None)
        return _reset_status(error)

    def finish(self, error: RpcError | None) -> None:
        if not self.done:
            self.done = True
            self.error = error
            self.wake()

    def give_up(self, error: RpcError) -> None:
        """Ends the call from our side."""
        self.finish(error)
        self.reset(engine.CANCEL)


class ClientConnection(Connection):
    """Carries the calls to one server. `usable` says whether it takes another one."""

    server = False

    def __init__(
        self,
        stream: SocketStream,
        limits: Limits,
        on_unusable: Callable[[ClientConnection], None],
        on_gone: Callable[[ClientConnection], None],
    ) -> None:
        super().__init__(stream, limits)
        self.lost: RpcError | None = None
        self.gone = asyncio.Event()
        self._greeting: asyncio.Future[None] = self.loop.create_future()
        self._going_away = False
        self._farewell = ""  # what the server's GOAWAY said
        self._on_unusable = on_unusable
        self._on_gone = on_gone

    @property
    def usable(self) -> bool:
        return not self.closed and not self._going_away

    @property
    def unusable_because(self) -> RpcError:
        """An error to raise for a connection that is not `usable`."""
        if self.lost is not None:
            return RpcError(self.lost.code, self.lost.message)
        return _unavailable(f"the server takes no calls, {self._farewell}")

    async def greeted(self) -> None:
        """Waits for the server's SETTINGS. Raises RpcError when the connection ends before."""
        await self._greeting
        if not self.usable:
            raise self.unusable_because

    def retire(self) -> None:
        """Takes no more calls; those that it has go on."""
        self._going_away = True
        self._on_unusable(self)

    def start(self, headers: bytes, body: bytes, deadline: float | None, *, end: bool) -> ClientCall:
        """Sends a request's headers, and its only message or the first part. Raises ProtocolError."""
        stream_id = self.engine.start(0, headers, body, end=end)
        call = ClientCall(self, stream_id, deadline)
        call.started = True
        call.finished = end
        self.streams[stream_id] = call
        self.kick()
        return call

    def on_headers(self, stream_id: int, block: bytes, *, end: bool) -> None:
        call = self.streams.get(stream_id)
        if isinstance(call, ClientCall):
            call.on_headers(block, end=end)

    def on_refused(self, stream: Stream, error: RpcError) -> None:
        if isinstance(stream, ClientCall):
            stream.give_up(error)

    def on_settings(self) -> None:
        if not self._greeting.done():
            self._greeting.set_result(None)

    def on_go_away(self, error: int, debug: bytes) -> None:
        """The server takes no more calls; those it works on go on, and nghttp2 ends the others as refused."""
        name, _ = _HTTP2_ERRORS.get(error, (str(error), Code.UNKNOWN))
        said = (
            debug[:_DEBUG_DATA_SHOWN].decode("utf-8", "replace").encode("unicode_escape").decode().replace('"', r"\"")
        )
        self._farewell = f'received prior goaway: code: {name}, debug data: "{said}"'
        self.retire()

    def on_lost(self, reason: str) -> None:
        if self.lost is None:
            if self._farewell:
                reason = f"{reason}, {self._farewell}"
            self.lost = _unavailable(reason)
        if not self._greeting.done():
            self._greeting.set_result(None)  # whoever waits looks at what became of the connection
        self._on_unusable(self)

    def shut(self, error: RpcError) -> None:
        """Ends the calls with `error` and the connection with a GOAWAY."""
        for call in list(self.streams.values()):
            if isinstance(call, ClientCall):
                call.finish(RpcError(error.code, error.message))
        self.lost = error
        if not self.closed:
            self.engine.terminate(engine.NO_ERROR)
            self.flush()
            self.close()

    def connection_lost(self, error: OSError | None) -> None:
        super().connection_lost(error)
        self._on_gone(self)
        self.gone.set()


def deadline_exceeded(last: RpcError | None) -> RpcError:
    """`last` is why there is no connection, if that was waited for."""
    text = "context deadline exceeded"
    if last is not None:
        text = f"{text} while waiting for connections to become ready; last error: {last.message}"
    return RpcError(Code.DEADLINE_EXCEEDED, text)


def _unavailable(reason: str) -> RpcError:
    return RpcError(Code.UNAVAILABLE, f'connection error: desc = "{reason}"')


def _reset_status(error: int) -> RpcError:
    name, code = _HTTP2_ERRORS.get(error, (str(error), Code.UNKNOWN))
    return RpcError(code, f"stream terminated by RST_STREAM with error code: {name}")


def _http_refusal(fields: dict[str, str]) -> RpcError | None:
    """Why an answer is none of gRPC's; None for one that is."""
    status = fields.get(":status", "")
    content_type = fields.get("content-type", "")
    if "grpc-status" in fields or (status == "200" and content_type.startswith("application/grpc")):
        return None
    from http import HTTPStatus  # which those who meet only gRPC servers need not load

    number = int(status) if status.isascii() and status.isdigit() else 0
    phrase = next((each.phrase for each in HTTPStatus if each == number), "")
    text = f"unexpected HTTP status code received from server: {number} ({phrase})"
    text += (
        f'; transport: received unexpected content-type "{content_type}"'
        if content_type
        else "; malformed header: missing HTTP content-type"
    )
    return RpcError(_HTTP_STATUSES.get(number, Code.UNKNOWN), text)
