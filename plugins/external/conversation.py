"""A call with streams both ways to a plugin, which has so many seconds for each of its messages."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final, Generic, Protocol, Self, TypeVar

from google.protobuf.message import Message

from transport.client import Bidi
from transport.client_stream import BidiOpener
from transport.status import Code, RpcError

R = TypeVar("R", bound=Message)

ANSWER_TIMEOUT: Final = 60.0
"""Seconds for one message of the plugin. Whatever the other side of the conversation takes is not counted."""


class Named(Protocol):
    def wrapped(self, error: RpcError) -> RpcError: ...


class Conversation(Generic[R]):
    """Use with `async with`; leaving it cancels what has not ended. Raises RpcError under the plugin's name."""

    def __init__(self, plugin: Named, opener: BidiOpener[R]) -> None:
        self._plugin = plugin
        self._opener = opener
        self._stream: Bidi[R] | None = None

    async def __aenter__(self) -> Self:
        try:
            self._stream = await self._opener.__aenter__()
        except RpcError as error:
            raise self._plugin.wrapped(error) from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._opener.__aexit__(kind, error, traceback)

    async def send(self, message: Message) -> None:
        """To a plugin that has ended the call nothing is sent: `receive` tells why it did."""
        stream = self._opened()
        if stream.done:
            return
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await stream.send(message)
        except TimeoutError:
            raise self._late() from None
        except RpcError as error:
            if not stream.done:
                raise self._plugin.wrapped(error) from error

    async def ask(self, message: Message) -> None:
        """Send the only message of a call whose stream is the plugin's alone."""
        await self.send(message)
        stream = self._opened()
        if not stream.done:
            await stream.close_send()

    async def await_message(self) -> R | None:
        """The plugin's next message, however long it takes, None at the end of its stream."""
        try:
            return await self._opened().recv()
        except RpcError as error:
            raise self._plugin.wrapped(error) from error

    async def receive(self) -> R | None:
        """The plugin's next message, None at the end of its stream."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                return await self._opened().recv()
        except TimeoutError:
            raise self._late() from None
        except RpcError as error:
            raise self._plugin.wrapped(error) from error

    def _opened(self) -> Bidi[R]:
        if self._stream is None:
            raise RuntimeError("the conversation is not open: use `async with`")
        return self._stream

    def _late(self) -> RpcError:
        text = f"the plugin gave no answer within {ANSWER_TIMEOUT:g} s"
        return self._plugin.wrapped(RpcError(Code.DEADLINE_EXCEEDED, text))
