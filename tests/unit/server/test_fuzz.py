"""Every method of the server, given well-formed messages that nobody sane would send."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from generated.grpc.health.v1 import health_pb2
from generated.spire.api.server.agent.v1 import agent_pb2
from generated.spire.api.server.bundle.v1 import bundle_pb2
from generated.spire.api.server.debug.v1 import debug_pb2
from generated.spire.api.server.entry.v1 import entry_pb2
from generated.spire.api.server.localauthority.v1 import localauthority_pb2
from generated.spire.api.server.logger.v1 import logger_pb2
from generated.spire.api.server.svid.v1 import svid_pb2
from generated.spire.api.server.trustdomain.v1 import trustdomain_pb2
from generated.spire.keys.v1 import keys_pb2
from server.authorization import POLICY, Role
from tests.simulators.house import HEALTH, AgentClient, House, csr, new_entry, running
from tests.simulators.pki import Authority, ec_key, spki
from transport.client import Channel
from transport.status import Code, RpcError

_SERVICES = (
    agent_pb2.DESCRIPTOR.services_by_name["Agent"],
    bundle_pb2.DESCRIPTOR.services_by_name["Bundle"],
    debug_pb2.DESCRIPTOR.services_by_name["Debug"],
    entry_pb2.DESCRIPTOR.services_by_name["Entry"],
    keys_pb2.DESCRIPTOR.services_by_name["Keys"],
    localauthority_pb2.DESCRIPTOR.services_by_name["LocalAuthority"],
    logger_pb2.DESCRIPTOR.services_by_name["Logger"],
    svid_pb2.DESCRIPTOR.services_by_name["SVID"],
    trustdomain_pb2.DESCRIPTOR.services_by_name["TrustDomain"],
)
METHODS: Sequence[MethodDescriptor] = [method for service in _SERVICES for method in service.methods]
EXAMPLES = 25
# A token, or an agent, that is there already: SPIRE has no better code for it.
_KNOWN_INTERNAL = ("failed to create token: this join token exists already",)

_CSR = csr(ec_key(), uris=["spiffe://example.org/a"], dns_names=["a.example.org", "b"])
_CERTIFICATE, _PUBLIC_KEY = Authority.root().der, spki(ec_key())
_TEXTS = (
    *("example.org", "spiffe://example.org", "other.org", "EXAMPLE.org", "a", "mine", "join_token", "unix", "a:b"),
    *("/a", "/spire/server", "/spire/agent/x/y", "/spire/agent/join_token/mine", "/a/../b", "//", "/", "/a/", "/%2e"),
    *("https://other.org", "https://other.org:8443/b?x#y", "https://[::1", "https://a:b@c", "HTTPS://é", "https://a/%"),
    *("*.a", "a.*", "-", "é", "\0", "\n", "'; DROP TABLE entries; --", "%s{0}", "x" * 3000, "9" * 5000, "-1", "1"),
    *("2026-01-02 15:04:05 +0000 +00", "0001-01-01 00:00:00 +2359 x", "9999-12-31 23:59:59 -2359 x"),
)
_NUMBERS = (0, 1, 2, 9, 60, 2**31 - 1)
_INTEGER_TYPES = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
}


@st.composite
def _flipped(draw: st.DrawFn) -> bytes:
    """A signing request with a byte that is not what it was."""
    position = draw(st.integers(0, len(_CSR) - 1))
    return _CSR[:position] + bytes((draw(st.integers(0, 255)),)) + _CSR[position + 1 :]


def _value(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return messages(field.message_type)
    if field.type == FieldDescriptor.TYPE_STRING:
        return st.one_of(st.sampled_from(_TEXTS), st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
    if field.type == FieldDescriptor.TYPE_BYTES:
        known = st.sampled_from((_CSR, _CERTIFICATE, _PUBLIC_KEY, b"mine", b""))
        return st.one_of(known, _flipped(), st.binary(max_size=40))
    if field.type == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    if field.type == FieldDescriptor.TYPE_ENUM:
        return st.integers(-1, 9)
    return st.one_of(st.sampled_from(_NUMBERS), st.integers(*_INTEGER_TYPES[field.type]))


@functools.cache
def messages(descriptor: Descriptor) -> st.SearchStrategy[Message]:
    """Messages of a type, each field there or not."""
    made = GetMessageClass(descriptor)

    @st.composite
    def build(draw: st.DrawFn) -> Message:
        values: dict[str, Any] = {}
        for field in descriptor.fields:
            if draw(st.integers(0, 3)):
                of_one = _value(field)
                values[field.name] = draw(st.lists(of_one, max_size=3) if field.is_repeated else of_one)
        for group in descriptor.oneofs:
            chosen = [field.name for field in group.fields if field.name in values]
            for name in chosen[1:]:
                del values[name]
        return made(**values)

    return build()


class Fuzzed:
    """A server, and somebody of each kind who calls it."""

    def __init__(self, house: House, agent: AgentClient) -> None:
        self.house = house
        self._agent = agent

    @classmethod
    async def on(cls, house: House) -> Fuzzed:
        agent = await house.attest(await house.join_token(token="mine-too"))
        entry = new_entry("/a", agent.id)
        entry.id = "mine"
        await house.create(entry)
        return cls(house, agent)

    async def call(self, method: MethodDescriptor, *requests: Message) -> None:
        """One request, or any number where the caller streams."""
        path = f"/{method.containing_service.full_name}/{method.name}"
        channel = self._agent.channel if POLICY[path] is Role.AGENT else self.house.local
        try:
            for response in await self._answers(method, path, channel, requests):
                for result in getattr(response, "results", ()):
                    self._check(Code(result.status.code), result.status.message)
        except RpcError as error:
            self._check(error.code, error.message)

    @staticmethod
    async def _answers(
        method: MethodDescriptor, path: str, channel: Channel, requests: Sequence[Message]
    ) -> list[Message]:
        response = GetMessageClass(method.output_type)
        if not method.client_streaming:
            [request] = requests
            return [await channel.unary(path, request, response, timeout=30)]
        async with channel.bidi(path, response, timeout=30) as stream:
            for request in requests:
                await stream.send(request)
            await stream.close_send()
            answers: list[Message] = []
            while (answer := await stream.recv()) is not None:
                answers.append(answer)
            return answers

    @staticmethod
    def _check(code: Code, message: str) -> None:
        assert code not in (Code.UNKNOWN, Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED), message
        assert code is not Code.INTERNAL or message in _KNOWN_INTERNAL, message
        assert len(message) < 10_000

    async def check_health(self) -> None:
        answer = await self.house.local.unary(
            HEALTH + "Check", health_pb2.HealthCheckRequest(), health_pb2.HealthCheckResponse
        )
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[asyncio.Runner, Fuzzed]]:
    """One server for all, which nothing of this may hurt."""
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        folder = tmp_path_factory.mktemp("fuzzed")
        house = runner.run(stack.enter_async_context(running(folder, "audit_log_enabled = true")))
        try:
            yield runner, runner.run(Fuzzed.on(house))
        finally:
            runner.run(stack.aclose())


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_bad_input_is_told_as_such(fuzzed: tuple[asyncio.Runner, Fuzzed], method: MethodDescriptor) -> None:
    runner, callers = fuzzed

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large),
        database=None,
    )
    @given(messages(method.input_type))
    def send(request: Message) -> None:
        runner.run(callers.call(method, request))

    send()
    runner.run(callers.check_health())


@pytest.mark.parametrize("method", [each for each in METHODS if each.client_streaming], ids=lambda method: method.name)
def test_streams_of_bad_input_end(fuzzed: tuple[asyncio.Runner, Fuzzed], method: MethodDescriptor) -> None:
    """Also when the caller sends more than it is asked for, or nothing."""
    runner, callers = fuzzed

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large),
        database=None,
    )
    @given(st.lists(messages(method.input_type), max_size=6))
    def send(requests: list[Message]) -> None:
        runner.run(callers.call(method, *requests))

    send()
    runner.run(callers.check_health())
