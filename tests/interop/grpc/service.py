"""The server of gRPC's interoperability cases on our transport. Messages are made from testing.proto when imported."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

from transport.peer import Peer
from transport.router import Context, Handler, Router
from transport.status import Code, RpcError

HERE: Final = Path(__file__).parent
INITIAL: Final = "x-grpc-test-echo-initial"
TRAILING: Final = "x-grpc-test-echo-trailing-bin"


def _described() -> descriptor_pb2.FileDescriptorSet:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "testing.pb"
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{HERE}", f"--descriptor_set_out={out}"]
        subprocess.run([*command, "testing.proto"], check=True, timeout=60)
        return descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())


_pool: Final = descriptor_pool.DescriptorPool()
for _file in _described().file:
    _pool.Add(_file)
SERVICE: Final = _pool.FindServiceByName("grpc.testing.TestService")


def message_class(name: str) -> type[Message]:
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"grpc.testing.{name}"))


Empty: Final = message_class("Empty")
SimpleRequest: Final = message_class("SimpleRequest")
SimpleResponse: Final = message_class("SimpleResponse")
InputRequest: Final = message_class("StreamingInputCallRequest")
InputResponse: Final = message_class("StreamingInputCallResponse")
OutputRequest: Final = message_class("StreamingOutputCallRequest")
OutputResponse: Final = message_class("StreamingOutputCallResponse")


def payload(size: int) -> dict[str, bytes]:
    return {"body": bytes(size)}


def router() -> Router:
    made = Router()
    handlers: dict[str, Handler] = {
        "EmptyCall": _empty,
        "UnaryCall": _unary,
        "StreamingOutputCall": _output,
        "StreamingInputCall": _input,
        "FullDuplexCall": _duplex,
    }
    made.add(SERVICE, handlers)
    return made


async def _empty(request: Any, peer: Peer, context: Context) -> Message:
    return Empty()


async def _unary(request: Any, peer: Peer, context: Context) -> Message:
    _echo(context, request)
    return SimpleResponse(payload=payload(request.response_size))


async def _output(request: Any, peer: Peer, context: Context) -> AsyncGenerator[Message, None]:
    for wanted in request.response_parameters:
        await asyncio.sleep(wanted.interval_us / 1e6)
        yield OutputResponse(payload=payload(wanted.size))


async def _input(requests: AsyncIterator[Any], peer: Peer, context: Context) -> Message:
    return InputResponse(aggregated_payload_size=sum([len(each.payload.body) async for each in requests]))


async def _duplex(requests: AsyncIterator[Any], peer: Peer, context: Context) -> AsyncGenerator[Message, None]:
    async for request in requests:
        _echo(context, request)
        async for response in _output(request, peer, context):
            yield response


def _echo(context: Context, request: Any) -> None:
    """Sends metadata back, and fails with the status that was asked for."""
    if INITIAL in context.metadata:
        context.set_header(INITIAL, context.metadata[INITIAL])
    if TRAILING in context.metadata:
        context.set_trailer(TRAILING, context.metadata[TRAILING])
    if request.response_status.code:
        raise RpcError(Code(request.response_status.code), request.response_status.message)
