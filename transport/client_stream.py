"""A call with streams, as its caller holds it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Generic, Self, TypeVar

from google.protobuf.message import DecodeError, Message

from transport.client_connection import ClientCall, deadline_exceeded
from transport.status import Code, RpcError

R = TypeVar("R", bound=Message)


class Bidi(Generic[R]):
    """A call with streams both ways. Leaving its `async with` cancels what has not ended."""

    def __init__(self, call: ClientCall, response: type[R]) -> None:
        self._call = call
        self._response = response
        self._expiry = expire(call)

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
    def headers(self) -> Mapping[str, str]:
        """What the server sent before its first message; empty until it has, names in lower case."""
        return self._call.headers or {}

    @property
    def trailers(self) -> Mapping[str, str]:
        """What the server sent at the end; empty before it."""
        return self._call.trailers

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
                return parse(self._response, message)
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


def expire(call: ClientCall) -> asyncio.TimerHandle | None:
    """Ends the call at its deadline, unless cancelled before."""
    if call.deadline is None:
        return None
    return call.connection.loop.call_at(call.deadline, call.give_up, deadline_exceeded(None))


def parse(response: type[R], message: bytes) -> R:
    try:
        return response.FromString(message)
    except DecodeError as error:
        raise RpcError(Code.INTERNAL, f"grpc: failed to unmarshal the received message: {error}") from error
