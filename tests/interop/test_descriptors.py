"""Our .proto definitions against the published Go packages: the same facts in both, nothing missing, nothing extra."""

from __future__ import annotations

import importlib
import itertools
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, FileDescriptor, MethodDescriptor

from tests.simulators.once import go_program

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BEYOND = ("spire/keys/", "perftools/")
"""The service of our own, and what pprof reads, of which no Go package has the descriptor; `go tool pprof` reads it in
test_profiles."""
PROTOS = sorted(
    name
    for path in (ROOT / "protos").rglob("*.proto")
    if not (name := str(path.relative_to(ROOT / "protos"))).startswith(BEYOND)
)
RENAMED = {
    "api.proto": "spiffe/broker/api.proto",
    "workload.proto": "spiffe/workload/workload.proto",
    "grpc_broker.proto": "plugin/grpc_broker.proto",
    "grpc_controller.proto": "plugin/grpc_controller.proto",
    "grpc_stdio.proto": "plugin/grpc_stdio.proto",
}
"""go-spiffe and go-plugin register their files under bare names; here a file stands where its package says."""
OF_OTHERS = ("google/protobuf/", "github.com/golang/protobuf/", "grpc/binlog/")
"""Files that come along and are none of our business: the runtimes' own."""
IN_PART = "envoy/"
"""Of Envoy's many messages ours has those that secrets are given out with, and of these the fields that it takes."""
OF_ENVOY = (IN_PART, "cel/", "google/api/", "udpa/", "validate/", "xds/")

Facts = dict[str, object]
"""What two ends have to agree on, by the full name that it is about."""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FileDescriptor]:
    """The published files by name."""
    own, of_envoy = (go_program(tmp_path_factory, HERE / module) for module in ("descriptors", "sds"))
    files = {file.name: file for file in itertools.chain(dumped(own), dumped(of_envoy, "descriptors"))}.values()
    pool = descriptor_pool.DescriptorPool()
    for file in files:
        pool.Add(file)
    return {RENAMED.get(file.name, file.name): pool.FindFileByName(file.name) for file in files}


def dumped(*command: str) -> Iterable[descriptor_pb2.FileDescriptorProto]:
    """What a program prints, each file behind those it imports."""
    dump = subprocess.run(command, check=True, capture_output=True)
    return descriptor_pb2.FileDescriptorSet.FromString(dump.stdout).file


def ours(name: str) -> FileDescriptor:
    module = importlib.import_module("generated." + name.removesuffix(".proto").replace("/", ".") + "_pb2")
    file = module.DESCRIPTOR
    assert isinstance(file, FileDescriptor)
    return file


@pytest.mark.parametrize("name", PROTOS)
def test_a_file_says_what_the_published_one_says(name: str, published: dict[str, FileDescriptor]) -> None:
    found, expected = dict(facts(ours(name))), dict(facts(published[name]))
    if name.startswith(IN_PART):
        expected = {each: fact for each, fact in expected.items() if each in found}
    assert found == expected


def test_no_published_file_is_missing(published: dict[str, FileDescriptor]) -> None:
    whole = [name for name in PROTOS if not name.startswith(IN_PART)]
    assert sorted(name for name in published if not name.startswith(OF_OTHERS + OF_ENVOY)) == whole


def test_the_comparison_sees_every_kind_of_fact() -> None:
    """An empty comparison would pass as well."""
    found = dict(facts(ours("spire/api/server/agent/v1/agent.proto")))
    assert found["spire.api.server.agent.v1.Agent.AttestAgent"] == (
        "spire.api.server.agent.v1.AttestAgentRequest",
        "spire.api.server.agent.v1.AttestAgentResponse",
        ("client streams", True),
        ("server streams", True),
        ("deprecated", False),
    )
    assert found["spire.api.server.agent.v1.AttestAgentRequest.challenge_response"] == (
        2,
        FieldDescriptor.TYPE_BYTES,
        None,
        "challengeResponse",
        ("repeated", False),
        ("packed", False),
        ("presence", True),
        ("oneof", "step"),
        ("deprecated", False),
    )
    levels = dict(facts(ours("spire/api/types/logger.proto")))
    assert levels["spire.api.types.LogLevel"] == {
        "UNSPECIFIED": 0,
        "PANIC": 1,
        "FATAL": 2,
        "ERROR": 3,
        "WARN": 4,
        "INFO": 5,
        "DEBUG": 6,
        "TRACE": 7,
    }


def facts(file: FileDescriptor) -> Iterator[tuple[str, object]]:
    proto = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(proto)
    yield "file", (file.package, proto.syntax)
    for service in file.services_by_name.values():
        for method in service.methods:
            yield method.full_name, method_facts(method)
    for message in file.message_types_by_name.values():
        yield from message_facts(message)
    for enum in file.enum_types_by_name.values():
        yield enum.full_name, enum_facts(enum)


def message_facts(message: Descriptor) -> Iterator[tuple[str, object]]:
    proto = descriptor_pb2.DescriptorProto()
    message.CopyToProto(proto)
    reserved = sorted((part.start, part.end) for part in proto.reserved_range)
    yield (
        message.full_name,
        (sorted(proto.reserved_name), reserved, proto.options.map_entry, proto.options.deprecated),
    )
    for field in message.fields:
        yield field.full_name, field_facts(field)
    for nested in message.nested_types:
        yield from message_facts(nested)
    for enum in message.enum_types:
        yield enum.full_name, enum_facts(enum)


def field_facts(field: FieldDescriptor) -> tuple[object, ...]:
    refers_to = field.message_type or field.enum_type
    return (
        field.number,
        field.type,
        refers_to.full_name if refers_to else None,
        field.json_name,
        ("repeated", field.is_repeated),
        ("packed", field.is_packed),
        ("presence", field.has_presence),
        ("oneof", field.containing_oneof.name if field.containing_oneof else None),
        ("deprecated", field.GetOptions().deprecated),
    )


def enum_facts(enum: EnumDescriptor) -> dict[str, int]:
    return {value.name: value.number for value in enum.values}


def method_facts(method: MethodDescriptor) -> tuple[object, ...]:
    return (
        method.input_type.full_name,
        method.output_type.full_name,
        ("client streams", method.client_streaming),
        ("server streams", method.server_streaming),
        ("deprecated", method.GetOptions().deprecated),
    )
