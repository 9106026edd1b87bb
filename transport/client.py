"""A channel to one server: connects when a call needs it, and again after a loss."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Mapping
from itertools import count
from typing import TYPE_CHECKING, Final, Self, TypeVar

from google.protobuf.message import Message

from transport import dial
from transport.client_connection import ClientCall, ClientConnection, deadline_exceeded
from transport.client_stream import Bidi, BidiOpener, expire, parse
from transport.engine import ProtocolError, pack
from transport.limits import CLIENT_LIMITS, Limits
from transport.sockets import SocketStream
from transport.status import Code, RpcError
from transport.wire import CONTENT_TYPE, format_timeout, frame, metadata_fields

if TYPE_CHECKING:
    from transport.tls import TlsContext

__all__ = ["Bidi", "Channel"]

R = TypeVar("R", bound=Message)

_BACKOFF_FIRST: Final = 0.05
_BACKOFF_LAST: Final = 5.0
_RETRIES: Final = 2  # for a call that the server has not worked on
_LARGEST_HEAD: Final = 60 * 1024  # libnghttp2 drops a request with more than 64 KiB of headers without a word
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
    def plain(cls, host: str, port: int, *, limits: Limits = CLIENT_LIMITS) -> Self:
        """Over TCP without TLS, for what needs no protection on its way."""
        return cls(dial.TcpDialer(host, port, None), None, limits)

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
        call = await self._finish(await self._start(path, body, metadata, deadline, end=True))
        for _ in range(_RETRIES):
            if not call.refused:
                break
            call = await self._finish(await self._start(path, body, metadata, deadline, end=True))
        if call.error is not None:
            raise call.error
        return parse(response, _only_message(call))

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
            async with Bidi(call, response) as stream:
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
            return Bidi(await self._start(path, b"", metadata, deadline, end=False), response)

        return BidiOpener(start)

    async def close(self) -> None:
        """Ends all calls with CANCELLED and closes the connections."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        for connection in list(self._open):
            connection.shut(_closing())
        while self._open:
            await next(iter(self._open)).gone.wait()

    async def _finish(self, call: ClientCall) -> ClientCall:
        """Waits for the call's status."""
        expiry = expire(call)
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
                raise deadline_exceeded(self._failure) from None
        head = self._heads.get(path)
        if head is None:
            head = self._heads[path] = self._head(path)
        if deadline is not None:
            head += pack([(b"grpc-timeout", format_timeout(deadline - connection.loop.time()))])
        if metadata:
            head += pack(metadata_fields(metadata))
            if len(head) > _LARGEST_HEAD:
                raise ValueError(f"metadata of {len(head)} bytes does not fit into a request's headers")
        try:
            return connection.start(head, body, deadline, end=end)
        except ProtocolError as error:  # a connection ends with its stream ids
            connection.retire()
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
        if self._closed:
            raise _closing()
        if self._connecting is None:
            loop = asyncio.get_running_loop()
            if self._failure is not None and loop.time() < self._retry_at:
                raise _again(self._failure)
            self._connecting = loop.create_task(self._try_to_connect())
            self._connecting.add_done_callback(self._connected)
        attempt = self._connecting
        await asyncio.wait([attempt])
        if attempt.cancelled():
            raise _closing()
        error = attempt.exception()
        if isinstance(error, RpcError):
            raise _again(error) from error
        if error is not None:
            raise error
        connection = attempt.result()
        if not connection.usable:  # a second attempt would make a loop of a server that ends each connection at once
            raise connection.unusable_because
        return connection

    def _connected(self, attempt: asyncio.Task[ClientConnection]) -> None:
        self._connecting = None
        if attempt.cancelled():
            return
        error = attempt.exception()
        if error is None and not attempt.result().usable:
            error = attempt.result().unusable_because
        if error is None:
            self._connection = attempt.result()
            self._failure = None
            self._backoff = _BACKOFF_FIRST
        elif isinstance(error, RpcError):
            self._failure = error
            self._retry_at = attempt.get_loop().time() + self._backoff * random.uniform(0.8, 1.2)  # noqa: S311 - jitter
            self._backoff = min(self._backoff * 1.6, _BACKOFF_LAST)

    async def _try_to_connect(self) -> ClientConnection:
        """A connection on which the server has spoken HTTP/2.

        In TLS 1.3 a client is done with the handshake before the server has judged its certificate: only the server's
        SETTINGS (RFC 9113, section 3.4) tell that it lets us in.
        """
        sock, link = await self._dialer.dial()
        made: asyncio.Future[ClientConnection] = asyncio.get_running_loop().create_future()

        def ready(stream: SocketStream) -> ClientConnection:
            if made.done():
                raise ConnectionAbortedError("nobody waits for the connection any more")
            if self._verify is not None:
                self._verify(stream.link.peer_certificates)
            connection = ClientConnection(stream, self._limits, self._moved_on, self._ended)
            self._open.add(connection)
            made.set_result(connection)
            return connection

        def failed(error: Exception) -> None:
            if not made.done():
                made.set_exception(error)

        stream = SocketStream(sock, link, ready, failed, self._limits)
        try:
            connection = await made
            await connection.greeted()
        except RpcError:
            raise
        except asyncio.CancelledError:
            stream.abort()
            raise
        except Exception as error:  # a verifier may refuse with any error
            raise dial.connection_error(f"authentication handshake failed: {error}") from error
        return connection

    def _moved_on(self, connection: ClientConnection) -> None:
        """The connection takes no new calls."""
        if self._connection is connection:
            self._connection = None

    def _ended(self, connection: ClientConnection) -> None:
        self._moved_on(connection)
        self._open.discard(connection)


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else asyncio.get_running_loop().time() + timeout


def _only_message(call: ClientCall) -> bytes:
    message = call.take()
    if message is None:
        raise RpcError(Code.INTERNAL, "cardinality violation: received no response message")
    return message


def _closing() -> RpcError:
    return RpcError(Code.CANCELLED, "grpc: the client connection is closing")


def _again(error: RpcError) -> RpcError:
    """An error of its own for each call: raising one adds to its traceback."""
    return RpcError(error.code, error.message)
