"""A gRPC server on a Unix socket that answers from a table, and commands run against it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message

from operations.flags import Program
from transport.peer import Peer
from transport.router import Context, Handler, Router
from transport.server import Server
from transport.status import RpcError

Answer = Message | RpcError | Sequence[Message | RpcError] | Callable[[Message], Message]
"""A message, an error, what comes in a stream (which then stays open), or what makes a message of a request."""


class Canned:
    """`answers` are by the method's name; `requests` and `metadata` are what came, in order."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.answers: dict[str, Answer] = {}
        self.requests: list[Message] = []
        self.metadata: list[dict[str, str]] = []

    @classmethod
    @asynccontextmanager
    async def serve(cls, path: Path, services: Sequence[ServiceDescriptor]) -> AsyncGenerator[Canned]:
        canned = cls(path)
        router = Router()
        for service in services:
            router.add(service, {method.name: canned._handler(method.server_streaming) for method in service.methods})
        server = Server(router)
        await server.listen_unix(canned.path, mode=0o600)
        try:
            yield canned
        finally:
            await server.drain(0)

    def _handler(self, streaming: bool) -> Handler:
        async def unary(request: Message, _: Peer, context: Context) -> Message:
            answer = self._answer(request, context)
            assert isinstance(answer, Message)
            return answer

        async def stream(request: Message, _: Peer, context: Context) -> AsyncIterator[Message]:
            answer = self._answer(request, context)
            assert not isinstance(answer, Message)
            for message in answer:
                if isinstance(message, RpcError):
                    raise message
                yield message
            await asyncio.Event().wait()

        return stream if streaming else unary

    def _answer(self, request: Message, context: Context) -> Message | Sequence[Message | RpcError]:
        self.requests.append(request)
        self.metadata.append(dict(context.metadata))
        answer = self.answers[context.method.name]
        if isinstance(answer, RpcError):
            raise answer
        return answer(request) if callable(answer) else answer


@dataclass(frozen=True, slots=True)
class Result:
    out: str
    err: str
    status: int


Run = Callable[..., Awaitable[Result]]
"""`await run("entry show", "-output", "json")`"""


def command(program: Program, canned: Canned, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs commands of a program as its process would, each with -socketPath for the canned server."""

    async def run(name: str, *args: str) -> Result:
        capsys.readouterr()
        line = [*name.split(), "-socketPath", canned.path, *args]
        status = await asyncio.to_thread(program.run, line)
        captured = capsys.readouterr()
        return Result(captured.out, captured.err, status)

    return run
