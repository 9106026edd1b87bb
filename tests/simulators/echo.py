"""A gRPC service with one method of each kind, for the transport's tests. Its messages carry text and a count."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final, Protocol, cast

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

from operations.errors import NotFound
from transport.peer import Peer
from transport.router import Context, Router

STRING, INT32, BYTES = 9, 5, 12


class EchoMessage(Protocol):
    text: str
    count: int
    payload: bytes


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="tests/echo.proto", package="tests.echo", syntax="proto3")
    message = file.message_type.add(name="Message")
    for number, (name, kind) in enumerate((("text", STRING), ("count", INT32), ("payload", BYTES)), start=1):
        message.field.add(
            name=name, number=number, type=cast("descriptor_pb2.FieldDescriptorProto.Type", kind), label=1
        )
    service = file.service.add(name="Echo")
    for name, requests, responses in (
        ("Unary", False, False),
        ("Fetch", False, True),
        ("Collect", True, False),
        ("Chat", True, True),
        ("Missing", False, False),
    ):
        service.method.add(
            name=name,
            input_type=".tests.echo.Message",
            output_type=".tests.echo.Message",
            client_streaming=requests,
            server_streaming=responses,
        )
    return file


_pool: Final = descriptor_pool.DescriptorPool()
_pool.Add(_file())
_described: Final = _pool.FindFileByName("tests/echo.proto")
SERVICE: Final = _described.services_by_name["Echo"]
Echo: Final[type[Message]] = message_factory.GetMessageClass(_described.message_types_by_name["Message"])

UNARY: Final = "/tests.echo.Echo/Unary"
FETCH: Final = "/tests.echo.Echo/Fetch"
COLLECT: Final = "/tests.echo.Echo/Collect"
CHAT: Final = "/tests.echo.Echo/Chat"


def echo(text: str = "", count: int = 0, payload: bytes = b"") -> Message:
    return Echo(text=text, count=count, payload=payload)


def text_of(message: object) -> str:
    return cast("EchoMessage", message).text


def count_of(message: object) -> int:
    return cast("EchoMessage", message).count


def payload_of(message: object) -> bytes:
    return cast("EchoMessage", message).payload


class EchoService:
    """Handlers that do what the request's text says; anything else is echoed. Remembers peers and cancellations."""

    def __init__(self) -> None:
        self.peers: list[Peer] = []
        self.contexts: list[Context] = []
        self.cancelled = asyncio.Event()
        self.started = asyncio.Event()
        self.release = asyncio.Event()

    def router(self) -> Router:
        router = Router()
        router.add(SERVICE, {"Unary": self.unary, "Fetch": self.fetch, "Collect": self.collect, "Chat": self.chat})
        return router

    async def unary(self, request: Message, peer: Peer, context: Context) -> Message | bytes:
        self.peers.append(peer)
        self.contexts.append(context)
        text = text_of(request)
        if text == "not found":
            raise NotFound("no such thing: ü 100%")
        if text == "crash":
            raise KeyError("an inner secret")
        if text == "trailer":
            context.set_trailer("spire-test", "seen")
        if text == "bytes":
            return request.SerializeToString()
        if text == "wait":
            await self._wait()
        return request

    async def fetch(self, request: Message, peer: Peer, context: Context) -> AsyncGenerator[Message, None]:
        self.peers.append(peer)
        for number in range(count_of(request)):
            yield echo(text=text_of(request), count=number, payload=payload_of(request))
        if text_of(request) == "wait":
            await self._wait()
        if text_of(request) == "not found":
            raise NotFound("no more")

    async def collect(self, requests: AsyncIterator[Message], peer: Peer, context: Context) -> Message:
        self.peers.append(peer)
        texts = [text_of(request) async for request in requests]
        return echo(text=",".join(texts), count=len(texts))

    async def chat(
        self, requests: AsyncIterator[Message], peer: Peer, context: Context
    ) -> AsyncGenerator[Message, None]:
        self.peers.append(peer)
        async for request in requests:
            yield request
            if text_of(request) == "stop":
                return

    async def _wait(self) -> None:
        self.started.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
