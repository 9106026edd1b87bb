"""The server's end of a connection: requests in, handlers run, answers out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Final, cast

from google.protobuf.message import DecodeError, Message

from transport import engine
from transport.connection import Connection, Stream
from transport.engine import pack, unpack
from transport.errors import status_of
from transport.limits import Limits
from transport.listener import Served
from transport.peer import Peer
from transport.router import Context, Response, Router
from transport.shares import Held
from transport.sockets import SocketStream
from transport.status import Code, RpcError
from transport.wire import (
    CONTENT_TYPE,
    OK_TRAILERS,
    RESPONSE_HEADERS,
    metadata_fields,
    parse_timeout,
    status_fields,
    unknown_encoding,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

_log: Final = logging.getLogger("transport")
_heads: Final[dict[bytes, RequestHead]] = {}
_HEADS_KEPT: Final = 512
_HEAD_SIZE_KEPT: Final = 2048


class RequestHead:
    """What the headers of a request say. Blocks that repeat are read once, so it is never changed."""

    __slots__ = ("encoding", "http_status", "metadata", "path", "refusal", "timeout")

    def __init__(self, block: bytes) -> None:
        fields: dict[str, str] = {}
        for raw_name, raw_value in unpack(block):
            name, value = raw_name.decode("ascii", "replace"), raw_value.decode("latin-1")
            fields[name] = f"{fields[name]},{value}" if name in fields else value
        self.path = fields.get(":path", "")
        self.encoding = fields.get("grpc-encoding", "identity")
        self.timeout: float | None = None
        self.refusal: RpcError | None = None
        self.http_status = 200
        content_type = fields.get("content-type", "")
        if fields.get(":method") != "POST":
            self.http_status = 405
            self.refusal = RpcError(
                Code.INTERNAL,
                f"http2Server.operateHeaders parsed a :method field: {fields.get(':method')} which should be POST",
            )
        elif not (
            content_type == "application/grpc" or content_type.startswith(("application/grpc+", "application/grpc;"))
        ):
            self.http_status = 415
            self.refusal = RpcError(Code.INVALID_ARGUMENT, f'invalid gRPC request content-type "{content_type}"')
        elif self.encoding != "identity":
            self.refusal = unknown_encoding(self.encoding)
        elif "grpc-timeout" in fields:
            try:
                self.timeout = parse_timeout(fields["grpc-timeout"])
            except ValueError as error:
                self.http_status = 400
                self.refusal = RpcError(Code.INTERNAL, f"malformed grpc-timeout: {error}")
        self.metadata = {name: value for name, value in fields.items() if not name.startswith(":")}

    @classmethod
    def parse(cls, block: bytes) -> RequestHead:
        head = _heads.get(block)
        if head is None:
            head = cls(block)
            if len(block) <= _HEAD_SIZE_KEPT:
                if len(_heads) >= _HEADS_KEPT:
                    _heads.clear()
                _heads[block] = head
        return head


class ServerCall(Stream):
    """One call at the server. Its task starts when a unary request is complete, and with the headers otherwise."""

    __slots__ = (
        "_counted",
        "_expiry",
        "_foreign",
        "_handler",
        "_refusal",
        "_start",
        "_task",
        "context",
        "method",
        "peer",
        "router",
    )

    connection: ServerConnection

    def __init__(self, connection: ServerConnection, stream_id: int) -> None:
        super().__init__(connection, stream_id)
        self.router = connection.router
        self.peer = connection.peer
        self._task: asyncio.Task[None] | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._refusal: RpcError | None = None
        self._counted = False  # among the calls of its process
        self._foreign: RequestHead | None = None  # no gRPC: read to its end, so that HTTP's errors come before ours

    def begin(self, head: RequestHead, *, end: bool) -> None:
        self.ended = end
        refusal = self.connection.count(1)
        self._counted = refusal is None
        if refusal is not None:
            self.fail(refusal)
            return
        if head.refusal is not None:
            if head.http_status == 200 or end:
                self.fail(head.refusal, http_status=head.http_status)
            else:
                self._foreign = head
            return
        try:
            self.method, self._handler = self.router.find(head.path)
        except RpcError as error:
            self.fail(error)
            return
        if self.method.largest is not None:
            self.limit_messages(self.method.largest)
        loop = self.connection.loop
        self._start = loop.time()
        deadline = None
        if head.timeout is not None:
            deadline = self._start + head.timeout
            self._expiry = loop.call_later(head.timeout, self._expire)
        self.context = Context(self.method, head.metadata, deadline)
        if self.method.client_streaming or end:
            self._spawn()

    def on_data(self, data: bytes) -> None:
        if self._foreign is None:
            super().on_data(data)
        else:
            self.connection.engine.consumed(self.id, len(data))

    def on_end(self) -> None:
        super().on_end()
        if self._foreign is not None and self._foreign.refusal is not None:
            self.fail(self._foreign.refusal, http_status=self._foreign.http_status)
        elif self._task is None and not self.finished:
            self._spawn()

    def on_closed(self, error: int) -> None:
        super().on_closed(error)
        if self._counted:
            self._counted = False
            self.connection.count(-1)
        self._stop()

    def refuse(self, error: RpcError) -> None:
        """Answers with an error and ends the handler."""
        # Its traceback would lead back to this call, and keep both until the collector comes.
        self._refusal = error.with_traceback(None)
        self.fail(error)
        self._stop()

    def _stop(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        # Let go of: one that is cancelled before it began keeps this call by its traceback, until the collector comes.
        task, self._task = self._task, None
        if task is not None:
            task.cancel()  # does nothing to a task that is done

    def fail(self, error: RpcError, *, http_status: int = 200) -> None:
        """Answers with an error: headers alone when nothing was sent before, else trailers."""
        if self.finished or self.closed:
            return
        fields = status_fields(error)
        context = getattr(self, "context", None)
        if context is not None:
            fields += metadata_fields(context.trailers)
        if self.started:
            self.end(headers=b"", trailers=pack(fields))
        else:
            head = [(b":status", b"%d" % http_status), (b"content-type", CONTENT_TYPE)]
            self.end(headers=pack(head + fields))

    def _spawn(self) -> None:
        self._task = self.connection.loop.create_task(self._run())

    def _expire(self) -> None:
        if self.finished or self.closed:
            return
        error = RpcError(Code.DEADLINE_EXCEEDED, "context deadline exceeded")
        if self.unsent:
            self.reset(engine.CANCEL)  # trailers would wait behind what the peer does not read
        self.refuse(error)

    async def _run(self) -> None:
        failure: RpcError | None = None
        try:
            if self.router.shows_requests and not (self.method.client_streaming or self.method.server_streaming):
                self.context.request = self._only_request()
            if self.router.before is not None:
                await self.router.before(self.method, self.peer, self.context)
            await self._answer()
        except asyncio.CancelledError:
            failure = self._refusal or RpcError(Code.CANCELLED, "context canceled")
            self.fail(failure)
        except Exception as error:  # noqa: BLE001 - the one place where a handler's failure becomes a status; status_of logs what is unexpected
            failure = status_of(error)
            self.fail(failure)
        finally:
            if self._expiry is not None:
                self._expiry.cancel()
            if self.router.after is not None:
                seconds = self.connection.loop.time() - self._start
                self.router.after(self.method, self.peer, self.context, failure, seconds)
            # It knows this frame, and by that all that the call held: the two would stay until the collector comes.
            failure = None

    async def _answer(self) -> None:
        method = self.method
        shown, self.context.request = self.context.request, None  # the handler lets go of it when it is done with it
        requests = self._requests() if method.client_streaming else self._only_request() if shown is None else shown
        del shown
        answer = self._handler(requests, self.peer, self.context)
        if not method.server_streaming:
            response = await cast("Awaitable[Response]", answer)
            self.put(_serialised(response), headers=self._headers(), end=True, trailers=self._trailers())
            return
        async with aclosing(cast("AsyncGenerator[Response, None]", answer)) as responses:
            async for response in responses:
                self.put(_serialised(response), headers=b"" if self.started else self._headers())
                del response  # a stream may wait long for the next
                if self.crowded:
                    await self.drained()
        self.end(headers=self._headers(), trailers=self._trailers())

    def _headers(self) -> bytes:
        custom = self.context.headers
        return RESPONSE_HEADERS + pack(metadata_fields(custom)) if custom else RESPONSE_HEADERS

    def _trailers(self) -> bytes:
        custom = self.context.trailers
        return pack([(b"grpc-status", b"0"), *metadata_fields(custom)]) if custom else OK_TRAILERS

    def _only_request(self) -> Message:
        message = self.take()
        if message is None or self.message_cut_off:
            raise RpcError(Code.INTERNAL, "cardinality violation: the call has no request message")
        return self._parse(message)

    async def _requests(self) -> AsyncIterator[Message]:
        while True:
            message = self.take()
            if message is not None:
                yield self._parse(message)
            elif self.closed:
                raise RpcError(Code.CANCELLED, "context canceled")
            elif self.ended:
                if self.message_cut_off:
                    raise RpcError(Code.INTERNAL, "unexpected EOF")
                return
            else:
                await self.wait()

    def _parse(self, message: bytes) -> Message:
        try:
            return self.method.request_type.FromString(message)
        except DecodeError as error:
            raise RpcError(Code.INTERNAL, f"grpc: error unmarshalling request: {error}") from error


class ServerConnection(Connection):
    """Runs the calls of one client."""

    server = True

    def __init__(
        self,
        stream: SocketStream,
        limits: Limits,
        router: Router,
        peer: Peer,
        on_gone: Callable[[Served], None],
        held: Held | None = None,
    ) -> None:
        """`held` is what the caller's process has of what there is for all, where that is shared out."""
        super().__init__(stream, limits)
        self._shares: Final = held
        self.router: Final = router
        self.peer: Final = peer
        self._on_gone = on_gone
        self._draining = False
        self._age: asyncio.TimerHandle | None = None
        if limits.connection_age is not None:
            self._age = self.loop.call_later(limits.connection_age, self.drain)

    def on_headers(self, stream_id: int, block: bytes, *, end: bool) -> None:
        known = self.streams.get(stream_id)
        if known is not None:  # trailers of the client, which gRPC does not have
            known.on_end()
            return
        call = ServerCall(self, stream_id)
        self.streams[stream_id] = call
        call.begin(RequestHead.parse(block), end=end)

    def on_refused(self, stream: Stream, error: RpcError) -> None:
        call = cast("ServerCall", stream)
        call.refuse(error)

    def drain(self) -> None:
        """Takes no new calls and ends with the last one; clients go elsewhere (RFC 9113, section 6.8)."""
        if self.closed or self._draining:
            return
        self._draining = True
        self.engine.announce_shutdown()
        self.kick()
        self.loop.call_later(0.1, self._go_away)

    def count(self, calls: int) -> RpcError | None:
        """Calls begin, or end when negative. The error for one that is one too many, which then does not count."""
        if self._shares is not None:
            if calls > 0 and not self._shares.calls.fits(calls):
                return RpcError(Code.RESOURCE_EXHAUSTED, f"too many calls are open: {self._shares.calls}")
            self._shares.calls.take(calls)
        return None

    def hold(self, size: int) -> None:
        super().hold(size)
        if self._shares is not None:
            received = self._shares.received
            received.take(size)
            if not received.fits(0):
                raise RpcError(Code.RESOURCE_EXHAUSTED, f"too many bytes wait to be read: {received}")

    def release(self, size: int) -> None:
        super().release(size)
        if self._shares is not None:
            self._shares.received.take(-size)

    def connection_lost(self, error: OSError | None) -> None:
        super().connection_lost(error)
        if self._age is not None:
            self._age.cancel()
        self._on_gone(self)

    def _go_away(self) -> None:
        if not self.closed:
            self.engine.go_away()
            self.kick()


def _serialised(response: Response) -> bytes:
    return response if isinstance(response, bytes) else response.SerializeToString()
