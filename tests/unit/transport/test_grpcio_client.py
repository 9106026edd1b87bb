"""grpcio's client against our server: every kind of call, and what goes wrong with them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import any_pb2, wrappers_pb2
from google.protobuf.message import Message

from generated.google.rpc.status_pb2 import Status
from tests.simulators.echo import CHAT, COLLECT, FETCH, UNARY, Echo, EchoService, count_of, echo, payload_of, text_of
from transport.peer import Peer
from transport.router import Context, Method
from transport.status import Code, RpcError

MIB = 1024 * 1024


@pytest.fixture
async def client(socket_path: str) -> AsyncIterator[grpc.aio.Channel]:
    options = [("grpc.max_receive_message_length", 64 * MIB)]
    async with grpc.aio.insecure_channel(f"unix:{socket_path}", options=options) as channel:
        yield channel


def serialise(message: Message) -> bytes:
    return message.SerializeToString()


def unary(client: grpc.aio.Channel, path: str = UNARY) -> Any:
    return client.unary_unary(path, request_serializer=serialise, response_deserializer=Echo.FromString)


def fetch(client: grpc.aio.Channel) -> Any:
    return client.unary_stream(FETCH, request_serializer=serialise, response_deserializer=Echo.FromString)


def collect(client: grpc.aio.Channel) -> Any:
    return client.stream_unary(COLLECT, request_serializer=serialise, response_deserializer=Echo.FromString)


def chat(client: grpc.aio.Channel) -> Any:
    return client.stream_stream(CHAT, request_serializer=serialise, response_deserializer=Echo.FromString)


async def failure(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def test_unary(client: grpc.aio.Channel) -> None:
    assert text_of(await unary(client)(echo("hello"))) == "hello"
    assert text_of(await unary(client)(echo("bytes"))) == "bytes"


async def test_server_stream(client: grpc.aio.Channel) -> None:
    answers = [count_of(each) async for each in fetch(client)(echo(count=300))]
    assert answers == list(range(300))


async def test_client_stream(client: grpc.aio.Channel) -> None:
    call = collect(client)()
    for number in range(50):
        await call.write(echo(str(number)))
    await call.done_writing()
    assert count_of(await call) == 50


async def test_bidi_one_by_one(client: grpc.aio.Channel) -> None:
    call = chat(client)()
    for number in range(20):
        await call.write(echo(str(number)))
        assert text_of(await call.read()) == str(number)
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_bidi_ended_by_the_server_first(client: grpc.aio.Channel) -> None:
    call = chat(client)()
    await call.write(echo("stop"))
    assert text_of(await call.read()) == "stop"
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_many_at_once(client: grpc.aio.Channel) -> None:
    answers = await asyncio.gather(*(unary(client)(echo(str(number))) for number in range(300)))
    assert [text_of(each) for each in answers] == [str(number) for number in range(300)]


async def test_big_messages_pass_the_windows(client: grpc.aio.Channel) -> None:
    payload = bytes(range(256)) * (3 * MIB // 256)
    assert payload_of(await unary(client)(echo(payload=payload))) == payload
    sizes = [len(payload_of(each)) async for each in fetch(client)(echo(count=8, payload=payload))]
    assert sizes == [3 * MIB] * 8


async def test_a_request_over_4_mib_is_refused(client: grpc.aio.Channel) -> None:
    code, details = await failure(unary(client)(echo(payload=bytes(4 * MIB))))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details == f"grpc: received message larger than max ({4 * MIB + 5} vs. {4 * MIB})"
    assert text_of(await unary(client)(echo("after"))) == "after"


async def test_unknown_names_have_grpc_gos_texts(client: grpc.aio.Channel) -> None:
    expected = {
        "/tests.echo.Echo/Missing": "unknown method Missing for service tests.echo.Echo",
        "/tests.echo.Echo/Nothing": "unknown method Nothing for service tests.echo.Echo",
        "/tests.Other/Unary": "unknown service tests.Other",
    }
    for path, text in expected.items():
        assert await failure(unary(client, path)(echo())) == (grpc.StatusCode.UNIMPLEMENTED, text)


async def test_errors(client: grpc.aio.Channel, caplog: pytest.LogCaptureFixture) -> None:
    assert await failure(unary(client)(echo("not found"))) == (
        grpc.StatusCode.NOT_FOUND,
        "no such thing: ü 100%",
    )
    code, details = await failure(unary(client)(echo("crash")))
    assert code is grpc.StatusCode.INTERNAL
    assert "secret" not in details
    assert "an inner secret" in caplog.text


async def test_a_stream_that_fails_half_way(client: grpc.aio.Channel) -> None:
    call = fetch(client)(echo("not found", 3))
    received: list[object] = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        received.extend([each async for each in call])
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert caught.value.details() == "no more"


async def test_a_broken_request_is_refused(client: grpc.aio.Channel) -> None:
    broken = client.unary_unary(UNARY, request_serializer=bytes, response_deserializer=Echo.FromString)
    code, details = await failure(broken(b"\x0a\xff"))
    assert code is grpc.StatusCode.INTERNAL
    assert details.startswith("grpc: error unmarshalling request: ")


async def test_compression_is_refused(client: grpc.aio.Channel) -> None:
    code, details = await failure(unary(client)(echo("x" * 4096), compression=grpc.Compression.Gzip))
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert details == 'grpc: Decompressor is not installed for grpc-encoding "gzip"'


async def test_the_deadline_ends_the_handler(client: grpc.aio.Channel, service: EchoService) -> None:
    code, _ = await failure(unary(client)(echo("wait"), timeout=0.2))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(30):
        await service.cancelled.wait()
    deadline = service.contexts[0].deadline
    assert deadline is not None
    assert deadline < asyncio.get_running_loop().time() + 1


@pytest.mark.parametrize("kind", [unary, fetch])
async def test_cancelling_ends_the_handler(client: grpc.aio.Channel, service: EchoService, kind: Any) -> None:
    call = kind(client)(echo("wait"))
    async with asyncio.timeout(30):
        if kind is fetch:
            reading = asyncio.ensure_future(call.read())
            await service.started.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
        else:
            running = asyncio.ensure_future(call)
            await service.started.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
        await service.cancelled.wait()


async def test_metadata_both_ways(client: grpc.aio.Channel, service: EchoService) -> None:
    call = unary(client)(echo("trailer"), metadata=(("workload.spiffe.io", "true"), ("twice", "a"), ("twice", "b")))
    await call
    assert ("spire-test", "seen") in list(await call.trailing_metadata())
    metadata = service.contexts[0].metadata
    assert metadata["workload.spiffe.io"] == "true"
    assert metadata["twice"] == "a,b"
    assert not [name for name in metadata if name.startswith(":")]


async def test_status_details(socket_path: str, service: EchoService, tmp_path: Any) -> None:
    from transport.server import Server

    router = service.router()

    async def refuse(method: Method, peer: Peer, context: Context) -> None:
        raise RpcError(Code.PERMISSION_DENIED, "not you", [wrappers_pb2.StringValue(value="because")])

    ended: list[tuple[str, RpcError | None]] = []

    def after(method: Method, peer: Peer, context: Context, error: RpcError | None, seconds: float) -> None:
        ended.append((method.name, error))

    router.before, router.after = refuse, after
    server = Server(router)
    path = f"{tmp_path}/refusing.sock"
    await server.listen_unix(path, mode=0o700)
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        call = unary(channel)(echo())
        assert await failure(call) == (grpc.StatusCode.PERMISSION_DENIED, "not you")
        trailers = dict(await call.trailing_metadata())
    await server.drain(5)
    status = Status.FromString(trailers["grpc-status-details-bin"])
    detail = wrappers_pb2.StringValue()
    packed: any_pb2.Any = status.details[0]
    assert packed.Unpack(detail)
    assert detail.value == "because"
    assert [(name, error.code if error else None) for name, error in ended] == [("Unary", Code.PERMISSION_DENIED)]
