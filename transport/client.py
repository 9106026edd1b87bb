"""A channel to one server: connects when a call needs it, and again after a loss."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Mapping
from itertools import count
from types import TracebackType
from typing import TYPE_CHECKING, Final, Generic, Self, TypeVar

from google.protobuf.message import DecodeError, Message

from transport import dial
from transport.client_connection import ClientCall, ClientConnection
from transport.engine import ProtocolError, pack
from transport.limits import CLIENT_LIMITS, Limits
from transport.sockets import SocketStream
from transport.status import Code, RpcError
from transport.wire import CONTENT_TYPE, format_timeout, frame, metadata_fields

if TYPE_CHECKING:
    from transport.tls import TlsContext

R = TypeVar("R", bound=Message)

_BACKOFF_FIRST: Final = 0.05
_BACKOFF_LAST: Final = 5.0
_RETRIES: Final = 2  # for a call that the server has not worked on
_NO_METADATA: Final[Mapping[str, str]] = {}

Verify = Callable[[tuple[bytes, ...]], None]


class Channel:
    """Calls to one server over one connection at a time. Made by `unix` or `tcp`.

    Calls raise RpcError. While the server cannot be reached, a call tries to connect and fails with what it met; within
    a short pause after a failure, growing from 50 ms to 5 s, calls fail at once with the last error.
    """

    def __init__(self, dialer: dial.Dialer, verify: Verify | None, limits: Limits) -> None:
        self._dialer = dialer
        self._verify = verify
        self._limits = limits
        self._connection: ClientConnection | None = None
        self._connecting: asyncio.Task[ClientConnection] | None = None
        self._open: set[ClientConnection] = set()
        self._closed = False
        self._failure: RpcError | None = None
        self._backoff = _BACKOFF_FIRST
        self._retry_at = 0.0
        self._heads: dict[str, bytes] = {}

    @classmethod
    def unix(cls, path: str, *, limits: Limits = CLIENT_LIMITS) -> Self:
        return cls(dial.UnixDialer(path), None, limits)

    @classmethod
    def tcp(
        cls, host: str, port: int, tls: Callable[[], TlsContext], verify: Verify, *, limits: Limits = CLIENT_LIMITS
    ) -> Self:
        """Over mutual TLS. `tls` is asked for each connection.

        `verify` gets the server's chain, DER, leaf first, before a byte of a call is sent, and raises to refuse it.
        """
        return cls(dial.TcpDialer(host, port, tls), verify, limits)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def unary(
        self,
        path: str,
        request: Message,
        response: type[R],
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - it is sent to the server too
        metadata: Mapping[str, str] = _NO_METADATA,
    ) -> R:
        """One request, one response. `path` is "/package.Service/Method", `timeout` in seconds over all."""
        body = frame(request.SerializeToString())
        deadline = _deadline(timeout)
        call = await self._finish(await self._start(path, body, metadata, deadline, end=True), deadline)
        for _ in range(_RETRIES):
            if not call.refused:
                break
            call = await self._finish(await self._start(path, body, metadata, deadline, end=True), deadline)
        if call.error is not None:
            raise call.error
        return _parse(response, _only_message(call))

    async def server_stream(
        self,
        path: str,
        request: Message,
        response: type[R],
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - it is sent to the server too
        metadata: Mapping[str, str] = _NO_METADATA,
    ) -> AsyncGenerator[R, None]:
        """One request, many responses. Ending the iteration early (aclose) cancels the call."""
        body = frame(request.SerializeToString())
        deadline = _deadline(timeout)
        for attempt in count():
            call = await self._start(path, body, metadata, deadline, end=True)
            async with Bidi(call, response, deadline) as stream:
                try:
                    while (message := await stream.recv()) is not None:
                        yield message
                    return
                except RpcError:
                    if not call.refused or attempt == _RETRIES:
                        raise

    async def client_stream(
        self,
        path: str,
        requests: AsyncIterable[Message],
        response: type[R],
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - it is sent to the server too
        metadata: Mapping[str, str] = _NO_METADATA,
    ) -> R:
        """Many requests, one response, which may come before the last request."""
        async with self.bidi(path, response, timeout=timeout, metadata=metadata) as stream:
            async for request in requests:
                if stream.done:
                    break
                await stream.send(request)
            await stream.close_send()
            answer = await stream.recv()
            if answer is None:
                raise RpcError(Code.INTERNAL, "cardinality violation: received no response message")
            return answer

    def bidi(
        self,
        path: str,
        response: type[R],
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] = _NO_METADATA,
    ) -> BidiOpener[R]:
        """Many requests, many responses: `async with channel.bidi(...) as stream`."""
        deadline = _deadline(timeout)

        async def start() -> Bidi[R]:
            return Bidi(await self._start(path, b"", metadata, deadline, end=False), response, deadline)

        return BidiOpener(start)

    async def close(self) -> None:
        """Ends all calls with CANCELLED and closes the connections."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        closing = RpcError(Code.CANCELLED, "grpc: the client connection is closing")
        for connection in list(self._open):
            connection.shut(closing)
        while self._open:
            await next(iter(self._open)).gone.wait()

    async def _finish(self, call: ClientCall, deadline: float | None) -> ClientCall:
        """Waits for the call's status."""
        expiry = _expire(call, deadline)
        try:
            while not call.done:
                await call.wait()
        except asyncio.CancelledError:
            call.give_up(RpcError(Code.CANCELLED, "context canceled"))
            raise
        finally:
            if expiry is not None:
                expiry.cancel()
        return call

    async def _start(
        self, path: str, body: bytes, metadata: Mapping[str, str], deadline: float | None, *, end: bool
    ) -> ClientCall:
        connection = self._connection
        if connection is None or not connection.usable:
            try:
                async with asyncio.timeout_at(deadline):
                    connection = await self._connect()
            except TimeoutError:
                raise _deadline_exceeded(self._failure) from None
        head = self._heads.get(path)
        if head is None:
            head = self._heads[path] = self._head(path)
        if deadline is not None:
            head += pack([(b"grpc-timeout", format_timeout(deadline - connection.loop.time()))])
        if metadata:
            head += pack(metadata_fields(metadata))
        try:
            return connection.start(head, body, end=end)
        except ProtocolError as error:
            raise RpcError(Code.UNAVAILABLE, f"the call could not be started: {error}") from error

    def _head(self, path: str) -> bytes:
        return pack(
            [
                (b":method", b"POST"),
                (b":scheme", self._dialer.scheme),
                (b":path", path.encode()),
                (b":authority", self._dialer.authority),
                (b"content-type", CONTENT_TYPE),
                (b"user-agent", b"grpc-python-spire"),
                (b"te", b"trailers"),
                (b"grpc-accept-encoding", b"identity"),
            ]
        )

    async def _connect(self) -> ClientConnection:
        """The one connection; calls that come at the same time wait for the same attempt."""
        while True:
            if self._closed:
                raise RpcError(Code.CANCELLED, "grpc: the client connection is closing")
            if self._connection is not None and self._connection.usable:
                return self._connection
            if self._connecting is None:
                loop = asyncio.get_running_loop()
                if self._failure is not None and loop.time() < self._retry_at:
                    raise RpcError(self._failure.code, self._failure.message)
                self._connecting = loop.create_task(self._try_to_connect())
                self._connecting.add_done_callback(self._connected)
            done, _ = await asyncio.wait([self._connecting])
            attempt = done.pop()
            if attempt.cancelled():
                raise RpcError(Code.CANCELLED, "grpc: the client connection is closing")
            error = attempt.exception()
            if isinstance(error, RpcError):
                raise RpcError(error.code, error.message) from error
            if error is not None:
                raise error

    def _connected(self, attempt: asyncio.Task[ClientConnection]) -> None:
        self._connecting = None
        if attempt.cancelled():
            return
        error = attempt.exception()
        if error is None:
            self._connection = attempt.result()
            self._failure = None
            self._backoff = _BACKOFF_FIRST
        elif isinstance(error, RpcError):
            self._failure = error
            self._retry_at = attempt.get_loop().time() + self._backoff * random.uniform(0.8, 1.2)  # noqa: S311 - jitter
            self._backoff = min(self._backoff * 1.6, _BACKOFF_LAST)

    async def _try_to_connect(self) -> ClientConnection:
        sock, link = await self._dialer.dial()
        established: asyncio.Future[ClientConnection] = asyncio.get_running_loop().create_future()

        def ready(stream: SocketStream) -> ClientConnection:
            if self._verify is not None:
                self._verify(stream.link.peer_certificates)
            connection = ClientConnection(stream, self._limits, self._moved_on, self._ended)
            self._open.add(connection)
            if established.cancelled():
                connection.close()
            else:
                established.set_result(connection)
            return connection

        def failed(error: Exception) -> None:
            if not established.done():
                established.set_exception(error)

        stream = SocketStream(sock, link, ready, failed, self._limits.handshake)
        try:
            return await established
        except asyncio.CancelledError:
            stream.abort()
            raise
        except Exception as error:  # a verifier may refuse with any error
            raise dial.connection_error(f"authentication handshake failed: {error}") from error

    def _moved_on(self, connection: ClientConnection) -> None:
        """The connection takes no new calls."""
        if self._connection is connection:
            self._connection = None

    def _ended(self, connection: ClientConnection) -> None:
        self._moved_on(connection)
        self._open.discard(connection)


class Bidi(Generic[R]):
    """A call with streams both ways. Leaving its `async with` cancels what has not ended."""

    def __init__(self, call: ClientCall, response: type[R], deadline: float | None) -> None:
        self._call = call
        self._response = response
        self._expiry = _expire(call, deadline)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        if not self._call.done:
            self._call.give_up(RpcError(Code.CANCELLED, "context canceled"))

    @property
    def done(self) -> bool:
        """Whether the call has its status; nothing sent now is heard."""
        return self._call.done

    async def send(self, message: Message) -> None:
        """Waits while the server is behind. Raises RpcError once the call has failed; `recv` tells why it ended."""
        call = self._call
        if call.done:
            raise call.error or RpcError(Code.INTERNAL, "the server has ended the call")
        call.put(message.SerializeToString(), headers=b"")
        if call.crowded:
            await call.drained()

    async def close_send(self) -> None:
        """Tells the server that no more messages follow."""
        self._call.end(headers=b"")

    async def recv(self) -> R | None:
        """The next response, or None at the end of a call that succeeded."""
        call = self._call
        while True:
            message = call.take()
            if message is not None:
                return _parse(self._response, message)
            if call.done:
                if call.error is not None:
                    raise call.error
                return None
            await call.wait()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> R:
        message = await self.recv()
        if message is None:
            raise StopAsyncIteration
        return message


class BidiOpener(Generic[R]):
    """Connects and starts the call when its `async with` is entered."""

    def __init__(self, start: Callable[[], Awaitable[Bidi[R]]]) -> None:
        self._start = start
        self._stream: Bidi[R] | None = None

    async def __aenter__(self) -> Bidi[R]:
        self._stream = await self._start()
        return self._stream

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._stream is not None:
            await self._stream.__aexit__(kind, error, traceback)


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else asyncio.get_running_loop().time() + timeout


def _expire(call: ClientCall, deadline: float | None) -> asyncio.TimerHandle | None:
    if deadline is None:
        return None
    return call.connection.loop.call_at(deadline, call.give_up, _deadline_exceeded(None))


def _deadline_exceeded(last: RpcError | None) -> RpcError:
    text = "context deadline exceeded"
    if last is not None:
        text = f"{text} while waiting for connections to become ready; last error: {last.message}"
    return RpcError(Code.DEADLINE_EXCEEDED, text)


def _only_message(call: ClientCall) -> bytes:
    message = call.take()
    if message is None:
        raise RpcError(Code.INTERNAL, "cardinality violation: received no response message")
    return message


def _parse(response: type[R], message: bytes) -> R:
    try:
        return response.FromString(message)
    except DecodeError as error:
        raise RpcError(Code.INTERNAL, f"grpc: failed to unmarshal the received message: {error}") from error
