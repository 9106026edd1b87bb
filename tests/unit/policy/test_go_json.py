"""Requests as Go's encoding/json has them; the cases are what it printed for SPIRE's own structs."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor
from google.protobuf.message_factory import GetMessageClass

from generated.spire.api.server.agent.v1 import agent_pb2
from generated.spire.api.server.bundle.v1 import bundle_pb2
from generated.spire.api.server.entry.v1 import entry_pb2
from generated.spire.api.server.localauthority.v1 import localauthority_pb2
from generated.spire.api.server.logger.v1 import logger_pb2
from generated.spire.api.server.svid.v1 import svid_pb2
from generated.spire.api.server.trustdomain.v1 import trustdomain_pb2
from server.policy.go_json import camel_case, to_json

MODULES = (agent_pb2, bundle_pb2, entry_pb2, localauthority_pb2, logger_pb2, svid_pb2, trustdomain_pb2)
CASES = [line.split(" ", 2) for line in (Path(__file__).parent / "go_json_cases.txt").read_text().splitlines()]


@pytest.mark.parametrize(("number", "name"), [(number, case[0]) for number, case in enumerate(CASES)])
def test_what_go_prints(number: int, name: str) -> None:
    _, encoded, printed = CASES[number]
    kind = GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(name))
    assert to_json(kind.FromString(base64.b64decode(encoded))) == json.loads(printed)


@pytest.mark.parametrize(
    ("name", "spelt"),
    [
        ("bundle_endpoint_profile", "BundleEndpointProfile"),
        ("https_web", "HttpsWeb"),
        ("x509_svid", "X509Svid"),
        ("a_1b", "A_1B"),
        ("_x", "XX"),
        ("alreadyCamel", "AlreadyCamel"),
    ],
)
def test_names_as_go_spells_them(name: str, spelt: str) -> None:
    assert camel_case(name) == spelt


def test_no_request_has_a_message_that_go_prints_in_its_own_way() -> None:
    """Struct, Value and their like have a MarshalJSON in Go."""

    def below(message: Descriptor, seen: set[str]) -> Iterator[str]:
        if message.full_name in seen:
            return
        seen.add(message.full_name)
        yield message.full_name
        for field in message.fields:
            if field.message_type is not None:
                yield from below(field.message_type, seen)

    names = {
        name
        for module in MODULES
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if not method.client_streaming
        for name in below(method.input_type, set())
    }
    own = {"Struct", "Value", "ListValue"}
    assert not names & {f"google.protobuf.{name}" for name in own}
