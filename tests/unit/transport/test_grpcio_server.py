"""Our client against grpcio's server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import any_pb2, wrappers_pb2
from google.protobuf.message import Message

from generated.google.rpc.status_pb2 import Status
from tests.simulators.echo import CHAT, COLLECT, FETCH, UNARY, Echo, count_of, echo, payload_of, text_of
from transport.client import Channel
from transport.status import Code, RpcError

MIB = 1024 * 1024


class Service:
    """grpcio handlers; `cancelled` is set when one is."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.started = asyncio.Event()
        self.timeouts: list[float | None] = []
        self.metadata: list[dict[str, str]] = []

    async def unary(self, request: Message, context: Any) -> Message:
        self.timeouts.append(context.time_remaining())
        self.metadata.append(dict(context.invocation_metadata()))
        match text_of(request):
            case "wait":
                await self._wait()
            case "fail":
                detail = any_pb2.Any()
                detail.Pack(wrappers_pb2.StringValue(value="because"))
                status = Status(code=9, message="no: ü %", details=[detail])
                context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no: ü %")
            case "big":
                return echo(payload=bytes(5 * MIB))
            case _:
                pass
        return request

    async def fetch(self, request: Message, context: Any) -> AsyncIterator[Message]:
        for number in range(count_of(request)):
            yield echo(count=number, payload=payload_of(request))
        if text_of(request) == "wait":
            await self._wait()
        if text_of(request) == "fail":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "later")

    async def collect(self, requests: AsyncIterator[Message], context: Any) -> Message:
        return echo(count=len([each async for each in requests]))

    async def chat(self, requests: AsyncIterator[Message], context: Any) -> AsyncIterator[Message]:
        async for request in requests:
            yield request
            if text_of(request) == "stop":
                return

    async def _wait(self) -> None:
        self.started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


def serialise(message: Message) -> bytes:
    return message.SerializeToString()


@pytest.fixture
def grpcio_service() -> Service:
    return Service()


@pytest.fixture
async def channel(grpcio_service: Service, tmp_path: Path) -> AsyncIterator[Channel]:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 64 * MIB)])
    made = {"request_deserializer": Echo.FromString, "response_serializer": serialise}
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(grpcio_service.unary, **made),
        "Fetch": grpc.unary_stream_rpc_method_handler(grpcio_service.fetch, **made),
        "Collect": grpc.stream_unary_rpc_method_handler(grpcio_service.collect, **made),
        "Chat": grpc.stream_stream_rpc_method_handler(grpcio_service.chat, **made),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("tests.echo.Echo", handlers),))
    path = str(tmp_path / "grpcio.sock")
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    async with Channel.unix(path) as opened:
        yield opened
    await server.stop(None)


async def several(count: int) -> AsyncIterator[Message]:
    for number in range(count):
        yield echo(text=str(number))


async def test_every_kind(channel: Channel) -> None:
    assert text_of(await channel.unary(UNARY, echo("hello"), Echo)) == "hello"
    assert [count_of(each) async for each in channel.server_stream(FETCH, echo(count=100), Echo)] == list(range(100))
    assert count_of(await channel.client_stream(COLLECT, several(100), Echo)) == 100
    async with channel.bidi(CHAT, Echo) as stream:
        for number in range(20):
            await stream.send(echo(str(number)))
            answer = await stream.recv()
            assert answer is not None
            assert text_of(answer) == str(number)
        await stream.close_send()
        assert await stream.recv() is None


async def test_many_at_once(channel: Channel) -> None:
    answers = await asyncio.gather(*(channel.unary(UNARY, echo(str(number)), Echo) for number in range(300)))
    assert [text_of(each) for each in answers] == [str(number) for number in range(300)]


async def test_big_messages_pass_the_windows(channel: Channel) -> None:
    payload = bytes(range(256)) * (3 * MIB // 256)
    assert payload_of(await channel.unary(UNARY, echo(payload=payload), Echo)) == payload
    stream = channel.server_stream(FETCH, echo(count=8, payload=payload), Echo)
    assert [len(payload_of(each)) async for each in stream] == [3 * MIB] * 8


async def test_a_response_over_4_mib_is_refused(channel: Channel) -> None:
    with pytest.raises(RpcError, match="larger than max") as caught:
        await channel.unary(UNARY, echo("big"), Echo)
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    assert text_of(await channel.unary(UNARY, echo("after"), Echo)) == "after"


async def test_a_status_with_details(channel: Channel) -> None:
    with pytest.raises(RpcError) as caught:
        await channel.unary(UNARY, echo("fail"), Echo)
    assert (caught.value.code, caught.value.message) == (Code.FAILED_PRECONDITION, "no: ü %")
    assert str(caught.value) == "rpc error: code = FailedPrecondition desc = no: ü %"
    detail = wrappers_pb2.StringValue()
    packed = caught.value.details[0]
    assert isinstance(packed, any_pb2.Any)
    assert packed.Unpack(detail)
    assert detail.value == "because"


async def test_a_stream_that_fails_half_way(channel: Channel) -> None:
    stream = channel.server_stream(FETCH, echo("fail", 3), Echo)
    assert [count_of(await anext(stream)) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(RpcError) as caught:
        await anext(stream)
    assert (caught.value.code, caught.value.message) == (Code.UNAVAILABLE, "later")


async def test_the_deadline_is_kept_and_sent(channel: Channel, grpcio_service: Service) -> None:
    with pytest.raises(RpcError, match=r"(?i)deadline exceeded") as caught:  # in the words of the end that saw it first
        await channel.unary(UNARY, echo("wait"), Echo, timeout=1)
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    async with asyncio.timeout(30):
        await grpcio_service.cancelled.wait()
    sent = grpcio_service.timeouts[0]
    assert sent is not None
    assert 0 < sent <= 1


async def test_cancelling_reaches_the_server(channel: Channel, grpcio_service: Service) -> None:
    call = asyncio.create_task(channel.unary(UNARY, echo("wait"), Echo))
    async with asyncio.timeout(30):
        await grpcio_service.started.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await grpcio_service.cancelled.wait()


async def test_leaving_a_stream_reaches_the_server(channel: Channel, grpcio_service: Service) -> None:
    stream = channel.server_stream(FETCH, echo("wait", 1), Echo)
    async with asyncio.timeout(30):
        assert count_of(await anext(stream)) == 0
        await grpcio_service.started.wait()
        await stream.aclose()
        await grpcio_service.cancelled.wait()


async def test_metadata(channel: Channel, grpcio_service: Service) -> None:
    await channel.unary(UNARY, echo(), Echo, metadata={"workload.spiffe.io": "true"})
    assert grpcio_service.metadata[0]["workload.spiffe.io"] == "true"


async def test_unknown_methods(channel: Channel) -> None:
    with pytest.raises(RpcError) as caught:
        await channel.unary("/tests.echo.Echo/Nothing", echo(), Echo)
    assert caught.value.code is Code.UNIMPLEMENTED
