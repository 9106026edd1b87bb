"""What tools are told that ask an endpoint what it serves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TypeVar

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import Message

from agent.reflection import Reflection
from generated.grpc.health.v1 import health_pb2
from generated.grpc.reflection.v1 import reflection_pb2 as v1
from generated.grpc.reflection.v1alpha import reflection_pb2 as v1alpha
from generated.spire.api.agent.delegatedidentity.v1 import delegatedidentity_pb2
from tests.simulators.in_process_agent import PATIENCE
from transport.client import Channel
from transport.router import Router
from transport.server import Server
from transport.status import Code, RpcError

R = TypeVar("R", bound=Message)
NAMES = ["grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"]
DELEGATED = "spire.api.agent.delegatedidentity.v1.DelegatedIdentity"


@pytest.fixture
async def channel(tmp_path: Path) -> AsyncGenerator[Channel, None]:
    router = Router()
    router.add(delegatedidentity_pb2.DESCRIPTOR.services_by_name["DelegatedIdentity"], {})
    Reflection(router).add_to(router)
    server = Server(router)
    path = str(tmp_path / "api.sock")
    await server.listen_unix(path, mode=0o700)
    async with Channel.unix(path) as made:
        yield made
    await server.drain(0)


async def ask(channel: Channel, *requests: Message, of: type[R], name: str = NAMES[0]) -> list[R]:
    async with asyncio.timeout(PATIENCE), channel.bidi(f"/{name}/ServerReflectionInfo", of) as stream:
        answers: list[R] = []
        for request in requests:
            await stream.send(request)
            answer = await stream.recv()
            assert answer is not None
            answers.append(answer)
        await stream.close_send()
        assert await stream.recv() is None
        return answers


async def told(channel: Channel, *requests: v1.ServerReflectionRequest) -> list[v1.ServerReflectionResponse]:
    return await ask(channel, *requests, of=v1.ServerReflectionResponse)


def files(response: v1.ServerReflectionResponse) -> list[str]:
    found = response.file_descriptor_response.file_descriptor_proto
    return [FileDescriptorProto.FromString(each).name for each in found]


def by_symbol(name: str) -> v1.ServerReflectionRequest:
    return v1.ServerReflectionRequest(file_containing_symbol=name)


async def test_services_under_both_names(channel: Channel) -> None:
    request = v1.ServerReflectionRequest(list_services="*", host="h")
    (answer,) = await told(channel, request)
    assert [each.name for each in answer.list_services_response.service] == [*NAMES, DELEGATED]
    assert (answer.valid_host, answer.original_request) == ("h", request)
    old = v1alpha.ServerReflectionRequest(list_services="*")
    (other,) = await ask(channel, old, of=v1alpha.ServerReflectionResponse, name=NAMES[1])
    assert [each.name for each in other.list_services_response.service] == [*NAMES, DELEGATED]


async def test_files_with_what_they_import_once_in_a_stream(channel: Channel) -> None:
    file = "spire/api/agent/delegatedidentity/v1/delegatedidentity.proto"
    first, again, imported = await told(
        channel,
        by_symbol(DELEGATED),
        v1.ServerReflectionRequest(file_by_filename=file),
        v1.ServerReflectionRequest(file_by_filename="spire/api/types/jwtsvid.proto"),
    )
    assert files(first)[0] == file
    assert set(files(first)) > {"spire/api/types/selector.proto", "spire/api/types/spiffeid.proto"}
    assert files(again) == [file]
    assert files(imported) == ["spire/api/types/jwtsvid.proto"]


@pytest.mark.parametrize(
    "symbol",
    [f"{DELEGATED}.FetchJWTSVIDs", "spire.api.types.Selector", "spire.api.types.Selector.value", NAMES[0]],
)
async def test_what_has_a_name(channel: Channel, symbol: str) -> None:
    (answer,) = await told(channel, by_symbol(symbol))
    assert files(answer)


@pytest.mark.parametrize(
    "request_",
    [
        by_symbol("nothing.There"),
        by_symbol(""),
        by_symbol(health_pb2.DESCRIPTOR.services_by_name["Health"].full_name),
        v1.ServerReflectionRequest(file_by_filename="spiffe/workload/workload.proto"),
        v1.ServerReflectionRequest(all_extension_numbers_of_type="nothing.There"),
        v1.ServerReflectionRequest(
            file_containing_extension=v1.ExtensionRequest(containing_type="spire.api.types.Selector")
        ),
    ],
)
async def test_what_is_not_served_here_is_not_told(channel: Channel, request_: v1.ServerReflectionRequest) -> None:
    answer, after = await told(channel, request_, by_symbol(DELEGATED))
    assert (answer.error_response.error_code, answer.error_response.error_message) == (
        Code.NOT_FOUND,
        "proto: not found",
    )
    assert files(after), "the stream goes on"


async def test_a_type_without_extensions(channel: Channel) -> None:
    name = "spire.api.types.Selector"
    (answer,) = await told(channel, v1.ServerReflectionRequest(all_extension_numbers_of_type=name))
    assert answer.all_extension_numbers_response == v1.ExtensionNumberResponse(base_type_name=name)


@pytest.mark.parametrize("request_", [v1.ServerReflectionRequest(), by_symbol("a" * 100_000)])
async def test_what_is_no_question(channel: Channel, request_: v1.ServerReflectionRequest) -> None:
    with pytest.raises(RpcError) as caught:
        await told(channel, request_)
    assert caught.value.code is Code.INVALID_ARGUMENT


async def test_so_many_streams_at_once(channel: Channel) -> None:
    refused = 0
    async with AsyncExitStack() as streams:
        for _ in range(17):
            opener = channel.bidi(f"/{NAMES[0]}/ServerReflectionInfo", v1.ServerReflectionResponse)
            stream = await streams.enter_async_context(opener)
            await stream.send(v1.ServerReflectionRequest(list_services="*"))
            try:
                await stream.recv()
            except RpcError as error:
                refused += error.code is Code.RESOURCE_EXHAUSTED
    assert refused == 1
