"""gRPC's published interoperability cases: grpc-go's client against our server, our client against grpc-go's server."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_der_private_key
from google.protobuf.message import Message

from tests.interop.grpc import service
from tests.simulators.once import go_program
from tests.simulators.svids import self_signed
from transport.client import Channel
from transport.server import Server
from transport.status import Code, RpcError
from transport.tls import client_context, server_context

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]  # the first build compiles gRPC

HERE: Final = Path(__file__).parent
SERVER: Final = self_signed("spiffe://example.org/spire/server")
PATIENCE: Final = 30.0
CALL: Final = "/grpc.testing.TestService/"
CASES: Final = [
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "status_code_and_message",
    "special_status_message",
    "custom_metadata",
    "unimplemented_method",
    "unimplemented_service",
    "largest_message",
]
REQUEST_SIZES: Final = [27182, 8, 1828, 45904]
RESPONSE_SIZES: Final = [31415, 9, 2653, 58979]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Go end. A Go toolchain that is missing is a failure."""
    return go_program(tmp_path_factory, HERE)


# -- grpc-go's client


async def passed(program: str, *arguments: str) -> list[str]:
    """The cases that went well; the client says which one did not."""
    process = await asyncio.create_subprocess_exec(
        program, "client", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), PATIENCE)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, errors.decode()
    return output.decode().split()


async def test_go_client_on_a_unix_socket(program: str, tmp_path: Path) -> None:
    server = Server(service.router())
    path = str(tmp_path / "test.sock")
    await server.listen_unix(path, mode=0o700)
    assert await passed(program, "-target", f"unix:{path}", "-cases", ",".join(CASES)) == CASES
    await server.drain(5)


async def test_go_client_over_tls(program: str) -> None:
    server = Server(service.router())
    context = server_context(SERVER)
    port = await server.listen_tcp("127.0.0.1", 0, lambda: context)
    assert await passed(program, "-target", f"127.0.0.1:{port}", "-tls", "-cases", ",".join(CASES)) == CASES
    await server.drain(5)


# -- grpc-go's server


@dataclass(frozen=True)
class GoServer:
    path: str
    port: int


@pytest.fixture
async def go_server(program: str, tmp_path: Path) -> AsyncIterator[GoServer]:
    certificate, key = tmp_path / "server.pem", tmp_path / "key.pem"
    certificate.write_text(ssl.DER_cert_to_PEM_cert(SERVER.chain[0]))
    loaded = load_der_private_key(SERVER.private_key, None)
    key.write_bytes(loaded.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path = str(tmp_path / "go.sock")
    process = await asyncio.create_subprocess_exec(
        *(program, "server", "-socket", path, "-certificate", str(certificate), "-key", str(key)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), PATIENCE)
        yield GoServer(path, int(line))
    finally:
        process.stdin.close()
        await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode == 0


@pytest.fixture(params=["unix", "tls"])
async def channel(request: pytest.FixtureRequest, go_server: GoServer) -> AsyncIterator[Channel]:
    if request.param == "unix":
        opened = Channel.unix(go_server.path)
    else:
        context = client_context(None)
        opened = Channel.tcp("127.0.0.1", go_server.port, lambda: context, lambda chain: None)
    yield opened
    await opened.close()


def size_of(response: Any) -> int:
    return len(response.payload.body)


def output_request(*sizes: int, interval_us: int = 0, **more: Any) -> Message:
    wanted = [{"size": size, "interval_us": interval_us} for size in sizes]
    return service.OutputRequest(response_parameters=wanted, **more)


async def refusal(channel: Channel, path: str, request: Message) -> RpcError:
    with pytest.raises(RpcError) as caught:
        await channel.unary(path, request, service.SimpleResponse, timeout=PATIENCE)
    return caught.value


async def test_unary_calls(channel: Channel) -> None:
    assert await channel.unary(CALL + "EmptyCall", service.Empty(), service.Empty) == service.Empty()
    request = service.SimpleRequest(response_size=314159, payload=service.payload(271828))
    assert size_of(await channel.unary(CALL + "UnaryCall", request, service.SimpleResponse)) == 314159


async def test_streams_one_way(channel: Channel) -> None:
    async def requests() -> AsyncIterator[Message]:
        for size in REQUEST_SIZES:
            yield service.InputRequest(payload=service.payload(size))

    summed: Any = await channel.client_stream(CALL + "StreamingInputCall", requests(), service.InputResponse)
    assert summed.aggregated_payload_size == sum(REQUEST_SIZES)
    responses = channel.server_stream(
        CALL + "StreamingOutputCall", output_request(*RESPONSE_SIZES), service.OutputResponse
    )
    assert [size_of(response) async for response in responses] == RESPONSE_SIZES


async def test_streams_both_ways(channel: Channel) -> None:
    async with channel.bidi(CALL + "FullDuplexCall", service.OutputResponse, timeout=PATIENCE) as stream:
        for sent, wanted in zip(REQUEST_SIZES, RESPONSE_SIZES, strict=True):
            await stream.send(output_request(wanted, payload=service.payload(sent)))
            assert size_of(await stream.recv()) == wanted
        await stream.close_send()
        assert await stream.recv() is None
    async with channel.bidi(CALL + "FullDuplexCall", service.OutputResponse, timeout=PATIENCE) as empty:
        await empty.close_send()
        assert await empty.recv() is None


async def test_a_deadline_passes(channel: Channel) -> None:
    await channel.unary(CALL + "EmptyCall", service.Empty(), service.Empty)
    async with channel.bidi(CALL + "FullDuplexCall", service.OutputResponse, timeout=0.05) as stream:
        await stream.send(output_request(1, interval_us=1_000_000, payload=service.payload(27182)))
        with pytest.raises(RpcError) as caught:
            await stream.recv()
    assert caught.value.code is Code.DEADLINE_EXCEEDED


async def test_cancelled_calls_leave_the_connection_good(channel: Channel) -> None:
    async with channel.bidi(CALL + "StreamingInputCall", service.InputResponse):
        pass  # cancelled at once
    async with channel.bidi(CALL + "FullDuplexCall", service.OutputResponse) as stream:
        await stream.send(output_request(31415, payload=service.payload(27182)))
        assert size_of(await stream.recv()) == 31415
    assert await channel.unary(CALL + "EmptyCall", service.Empty(), service.Empty, timeout=PATIENCE) == service.Empty()


@pytest.mark.parametrize("text", ["test status message", "\t\nwhite\r\nspace, BMP ☺ and beyond 😈\t\n"])
async def test_statuses(channel: Channel, text: str) -> None:
    status = {"code": 2, "message": text}
    error = await refusal(channel, CALL + "UnaryCall", service.SimpleRequest(response_status=status))
    assert (error.code, error.message) == (Code.UNKNOWN, text)
    async with channel.bidi(CALL + "FullDuplexCall", service.OutputResponse, timeout=PATIENCE) as stream:
        await stream.send(output_request(response_status=status))
        with pytest.raises(RpcError) as caught:
            await stream.recv()
    assert (caught.value.code, caught.value.message) == (Code.UNKNOWN, text)


async def test_methods_and_services_that_are_not_there(channel: Channel) -> None:
    for path in (CALL + "UnimplementedCall", CALL + "Other", "/grpc.testing.UnimplementedService/UnimplementedCall"):
        assert (await refusal(channel, path, service.Empty())).code is Code.UNIMPLEMENTED


async def test_metadata_comes_back(channel: Channel) -> None:
    trailing = base64.b64encode(b"\x0a\x0b\x0a\x0b\x0a\x0b").decode()
    metadata = {service.INITIAL: "test_initial_metadata_value", service.TRAILING: trailing}
    async with channel.bidi(CALL + "FullDuplexCall", service.OutputResponse, metadata=metadata) as stream:
        await stream.send(output_request(1, payload=service.payload(1)))
        assert size_of(await stream.recv()) == 1
        assert stream.headers[service.INITIAL] == "test_initial_metadata_value"
        await stream.close_send()
        assert await stream.recv() is None
        assert stream.trailers[service.TRAILING] == trailing


async def test_the_largest_message(channel: Channel) -> None:
    async def answer_to(request: Message) -> int:
        return size_of(await channel.unary(CALL + "UnaryCall", request, service.SimpleResponse, timeout=PATIENCE))

    largest = 4 * 1024 * 1024 - 10  # a field in a field: two tags and two lengths
    assert await answer_to(service.SimpleRequest(payload=service.payload(largest))) == 0
    assert await answer_to(service.SimpleRequest(response_size=largest)) == largest
    for over in ({"payload": service.payload(largest + 1)}, {"response_size": largest + 1}):
        error = await refusal(channel, CALL + "UnaryCall", service.SimpleRequest(**over))
        assert error.code is Code.RESOURCE_EXHAUSTED
    assert await answer_to(service.SimpleRequest(response_size=1)) == 1
