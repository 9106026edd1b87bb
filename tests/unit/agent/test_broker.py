"""The broker endpoint: who gets in, which references count there, and what is given for them."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from google.protobuf.any_pb2 import Any

from agent.broker.endpoint import serve_broker
from agent.config.delegation import BrokerSettings
from agent.workload_attestation import WorkloadAttestation
from generated.grpc.reflection.v1 import reflection_pb2
from generated.spiffe.broker import api_pb2 as api
from generated.spire.api.types import bundle_pb2
from identity.selectors import Selector
from identity.spiffeid import SpiffeId, TrustDomain
from keystores.memory import MemoryKeyManager
from operations.errors import ConfigurationError, InvalidArgument, Refused, SpireError, Unsupported
from plugins.keymanager import Key, KeyType
from plugins.workloadattestor import BROKER_ID, PID_REFERENCE, WorkloadAttestor
from tests.simulators.fake_server import Authority
from tests.simulators.in_process_agent import PATIENCE, Home, RunningAgent, until
from tests.simulators.spire import free_port
from transport.client import Channel
from transport.limits import CLIENT_LIMITS
from transport.peer import Process
from transport.sockets import Link
from transport.status import Code, RpcError
from transport.tls import InProcessIdentity, client_context

PATH = "/spiffe.broker.API/"
HEADER = {"broker.spiffe.io": "true"}
BROKER = "spiffe://example.org/broker"
OBJECT = "type.googleapis.com/spiffe.broker.KubernetesObjectReference"
OTHER = "example.org/Reference"


@dataclass
class ByPid:
    """Knows processes and no references."""

    selectors: dict[int, Sequence[str]] = field(default_factory=dict[int, Sequence[str]])
    meanwhile: Callable[[], Awaitable[None]] | None = None
    name: str = "pids"

    async def attest(self, process: Process) -> Sequence[Selector]:
        if self.meanwhile is not None:
            await self.meanwhile()
        if process.pid not in self.selectors:
            raise Refused("not today")
        return [Selector.parse(each) for each in self.selectors[process.pid]]


@dataclass
class ByReference(ByPid):
    """Knows references by their bytes; what it has none for raises `error`."""

    references: dict[bytes, Sequence[str]] = field(default_factory=dict[bytes, Sequence[str]])
    error: SpireError = field(default_factory=lambda: Unsupported("not for me"))
    name: str = "references"
    asked_for: set[str] = field(default_factory=set[str])

    async def attest_reference(self, type_url: str, value: bytes) -> Sequence[Selector]:
        self.asked_for.add(f"{type_url} {BROKER_ID.get()}")
        if value not in self.references:
            raise self.error
        return [Selector.parse(each) for each in self.references[value]]


class UnixTlsDialer:
    scheme = b"https"
    authority = b"localhost"

    def __init__(self, path: str, identity: InProcessIdentity | None) -> None:
        self._path, self._context = path, client_context(identity)

    async def dial(self) -> tuple[socket.socket, Link]:
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, self._path)
        return sock, self._context.link(sock, server=False)


@dataclass
class Endpoint:
    agent: RunningAgent
    authority: Authority
    pids: ByPid
    references: ByReference
    path: str
    port: int
    shown: list[tuple[bytes, ...]] = field(default_factory=list[tuple[bytes, ...]])
    """The chains that the agent showed, one for each connection."""

    def unix(self, identity: InProcessIdentity | None) -> Channel:
        return Channel(UnixTlsDialer(self.path, identity), self._verify, CLIENT_LIMITS)

    def tcp(self, identity: InProcessIdentity | None) -> Channel:
        return Channel.tcp("127.0.0.1", self.port, lambda: client_context(identity), self._verify)

    def broker(self) -> InProcessIdentity:
        return self.authority.identity(BROKER)

    def _verify(self, chain: tuple[bytes, ...]) -> None:
        self.shown.append(chain)


@asynccontextmanager
async def served(home: Home, brokers: Mapping[str, Mapping[str, bool]] | None = None) -> AsyncGenerator[Endpoint, None]:
    allowed = brokers or {BROKER: {PID_REFERENCE: False, OBJECT: True}}
    async with home.running() as agent:
        pids, references = ByPid(), ByReference()
        attestors: list[WorkloadAttestor] = [pids, references]
        path, port = str(home.folder / "broker.sock"), free_port()
        settings = BrokerSettings(
            path, ("127.0.0.1", port), {SpiffeId.parse(name): types for name, types in allowed.items()}
        )
        server = await serve_broker(settings, agent.managing, WorkloadAttestation(attestors))
        try:
            yield Endpoint(agent, home.server.authority, pids, references, path, port)
        finally:
            await server.drain(0)


@pytest.fixture
async def endpoint(home: Home) -> AsyncGenerator[Endpoint, None]:
    home.server.add_entry("a", "/workload", ["test:a"])
    async with served(home) as found:
        yield found


@pytest.fixture
async def channel(endpoint: Endpoint) -> AsyncGenerator[Channel, None]:
    async with endpoint.unix(endpoint.broker()) as found:
        yield found


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        yield child
        child.kill()


def reference(type_url: str, value: bytes = b"") -> api.WorkloadReference:
    return api.WorkloadReference(reference=Any(type_url=type_url, value=value))


def by_pid(pid: int) -> api.WorkloadReference:
    return reference(PID_REFERENCE, api.WorkloadPIDReference(pid=pid).SerializeToString())


def svids(channel: Channel, workload: api.WorkloadReference | None) -> AsyncGenerator[api.SubscribeToX509SVIDResponse]:
    request = api.SubscribeToX509SVIDRequest(reference=workload)
    return channel.server_stream(
        PATH + "SubscribeToX509SVID", request, api.SubscribeToX509SVIDResponse, timeout=PATIENCE, metadata=HEADER
    )


async def tokens(
    channel: Channel, workload: api.WorkloadReference | None, spiffe_id: str = "", audience: str = "x"
) -> list[str]:
    request = api.FetchJWTSVIDRequest(reference=workload, audience=[audience] if audience else [], spiffe_id=spiffe_id)
    response = await channel.unary(
        PATH + "FetchJWTSVID", request, api.FetchJWTSVIDResponse, timeout=PATIENCE, metadata=HEADER
    )
    assert all(each.svid for each in response.svids)
    return [each.spiffe_id for each in response.svids]


async def refusal(answer: Awaitable[object]) -> tuple[Code, str]:
    with pytest.raises(RpcError) as caught:
        async with asyncio.timeout(PATIENCE):
            await answer
    return caught.value.code, caught.value.message


async def test_what_a_process_would_be_given(home: Home, process: subprocess.Popen[bytes]) -> None:
    root = home.server.authority.der
    home.server.federated["other.org"] = bundle_pb2.Bundle(
        trust_domain="other.org", x509_authorities=[bundle_pb2.X509Certificate(asn1=root)]
    )
    home.server.add_entry("b", "/b", ["test:a"], hint="x", created_at=2)
    home.server.add_entry("c", "/c", ["test:a"], hint="x", created_at=1, federates_with=["other.org"])
    home.server.add_entry("d", "/d", ["test:a"], admin=True)
    home.server.add_entry("e", "/e", ["test:a"], downstream=True)
    async with served(home) as endpoint, endpoint.unix(endpoint.broker()) as channel:
        endpoint.pids.selectors[process.pid] = ("test:a",)
        response = await anext(svids(channel, by_pid(process.pid)))
        (svid,) = response.svids
        assert (svid.spiffe_id, svid.hint, svid.bundle) == ("spiffe://example.org/c", "x", root)
        assert svid.x509_svid
        assert svid.x509_svid_key
        assert response.federated_bundles == {"spiffe://other.org": root}
        assert await tokens(channel, by_pid(process.pid)) == ["spiffe://example.org/c"]


async def test_a_stream_hears_of_every_change(endpoint: Endpoint, channel: Channel, home: Home) -> None:
    endpoint.references.references[b"x"] = ("test:a", "test:b")
    async with asyncio.timeout(PATIENCE):
        stream = svids(channel, reference(OBJECT, b"x"))
        assert len((await anext(stream)).svids) == 1
        home.server.add_entry("b", "/b", ["test:b"])
        while len((await anext(stream)).svids) != 2:
            pass
        home.server.entries.clear()
        while (await anext(stream)).svids:
            pass


async def test_tokens_of_the_identity_that_is_wanted(endpoint: Endpoint, channel: Channel, home: Home) -> None:
    endpoint.references.references[b"x"] = ("test:a",)
    home.server.add_entry("b", "/b", ["test:a"])
    await until(lambda: len(endpoint.agent.managing.cache.entries()) == 2)
    workload = reference(OBJECT, b"x")
    assert await tokens(channel, workload) == ["spiffe://example.org/workload", "spiffe://example.org/b"]
    assert await tokens(channel, workload, "spiffe://example.org/b") == ["spiffe://example.org/b"]
    nobody = (Code.PERMISSION_DENIED, "no identity issued")
    assert await refusal(tokens(channel, workload, "spiffe://example.org/c")) == nobody
    assert await refusal(tokens(channel, workload, "c")) == (
        Code.INVALID_ARGUMENT,
        "invalid requested SPIFFE ID: scheme is missing or invalid",
    )
    assert await refusal(tokens(channel, workload, audience="")) == (
        Code.INVALID_ARGUMENT,
        "audience must be specified",
    )


async def test_bundles(endpoint: Endpoint, channel: Channel, home: Home) -> None:
    endpoint.references.references[b"x"] = ()
    workload = reference(OBJECT, b"x")
    async with asyncio.timeout(PATIENCE):
        certificates = channel.server_stream(
            PATH + "SubscribeToX509Bundles",
            api.SubscribeToX509BundlesRequest(reference=workload),
            api.SubscribeToX509BundlesResponse,
            metadata=HEADER,
        )
        keys = channel.server_stream(
            PATH + "SubscribeToJWTBundles",
            api.SubscribeToJWTBundlesRequest(reference=workload),
            api.SubscribeToJWTBundlesResponse,
            metadata=HEADER,
        )
        assert (await anext(certificates)).bundles == {"spiffe://example.org": home.server.authority.der}
        assert json.loads((await anext(keys)).bundles["spiffe://example.org"]) == {"keys": []}
        home.server.federated["other.org"] = bundle_pb2.Bundle(trust_domain="other.org")
        home.server.add_entry("b", "/b", ["test:b"], federates_with=["other.org"])
        assert set((await anext(certificates)).bundles) == {"spiffe://example.org", "spiffe://other.org"}
        assert set((await anext(keys)).bundles) == {"spiffe://example.org", "spiffe://other.org"}


# Who gets in


def caller(name: str, own: Authority) -> InProcessIdentity | None:
    foreign = Authority(TrustDomain("other.org"))
    return {
        "nobody": None,
        "another": own.identity("spiffe://example.org/other"),
        "of yesterday": own.identity(BROKER, ttl=-1),
        "an impostor": foreign.identity(BROKER),
        "a foreigner": foreign.identity("spiffe://other.org/broker"),
    }[name]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nobody", "it shows no X509-SVID"),
        ("another", '"spiffe://example.org/other" is none of the brokers of experimental.broker'),
        ("of yesterday", "could not verify leaf certificate: certificate has expired"),
        ("an impostor", "could not verify leaf certificate: unable to get local issuer certificate"),
        ("a foreigner", 'no X.509 bundle for trust domain "other.org"'),
    ],
)
async def test_callers_that_are_no_brokers_are_cut_off(
    endpoint: Endpoint, name: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    for connect in (endpoint.unix, endpoint.tcp):
        async with connect(caller(name, endpoint.authority)) as channel:
            code, _ = await refusal(anext(svids(channel, by_pid(os.getpid()))))
            assert code is Code.UNAVAILABLE
    # Said once a second, not for each.
    first, *_ = [each for each in caplog.records if "was refused" in each.message]
    assert str(vars(first)["fields"]["error"]) == reason


async def test_a_broker_of_another_trust_domain_whose_bundle_is_known(home: Home) -> None:
    foreign = Authority(TrustDomain("other.org"))
    home.server.federated["other.org"] = bundle_pb2.Bundle(
        trust_domain="other.org", x509_authorities=[bundle_pb2.X509Certificate(asn1=foreign.der)]
    )
    home.server.add_entry("a", "/workload", ["test:a"], federates_with=["other.org"])
    async with served(home, {"spiffe://other.org/broker": {OBJECT: True}}) as endpoint:
        endpoint.references.references[b"x"] = ("test:a",)
        async with endpoint.tcp(foreign.identity("spiffe://other.org/broker")) as channel:
            assert (await anext(svids(channel, reference(OBJECT, b"x")))).svids
        assert endpoint.references.asked_for == {f"{OBJECT} spiffe://other.org/broker"}


async def test_the_agent_shows_the_svid_that_it_has(home: Home) -> None:
    home.server.add_entry("a", "/workload", ["test:a"])
    home.server.agent_ttl = 6
    async with served(home) as endpoint:
        endpoint.references.references[b"x"] = ("test:a",)
        managing = endpoint.agent.managing
        first = managing.svid.chain
        async with endpoint.unix(endpoint.broker()) as channel:
            await anext(svids(channel, reference(OBJECT, b"x")))
        await until(lambda: managing.svid.chain != first)
        async with endpoint.unix(endpoint.broker()) as channel:
            await anext(svids(channel, reference(OBJECT, b"x")))
        assert endpoint.shown[0] == first
        assert endpoint.shown[1] != first


async def test_a_call_without_the_header_is_refused(endpoint: Endpoint, channel: Channel) -> None:
    del endpoint
    for metadata in ({}, {"broker.spiffe.io": "false"}, {"workload.spiffe.io": "true"}):
        call = channel.unary(PATH + "FetchJWTSVID", api.FetchJWTSVIDRequest(), api.JWTSVID, metadata=metadata)
        assert await refusal(call) == (Code.INVALID_ARGUMENT, "security header missing from request")


async def test_a_port_that_is_taken(home: Home) -> None:
    async with served(home) as endpoint:
        settings = BrokerSettings(None, ("127.0.0.1", endpoint.port), {})
        with pytest.raises(SpireError, match="change bind_address of experimental"):
            await serve_broker(settings, endpoint.agent.managing, WorkloadAttestation([]))


class Outside:
    """Keys that are not in this process, as far as anybody can see."""

    def __init__(self, key: Key) -> None:
        self.id, self.key_type, self.public_key = key.id, key.key_type, key.public_key
        self.sign, self.sign_batch = key.sign, key.sign_batch


class OutsideKeys(MemoryKeyManager):
    async def generate(self, key_id: str, key_type: KeyType) -> Key:
        return Outside(await super().generate(key_id, key_type))


async def test_an_agents_key_in_a_device_cannot_serve(home: Home) -> None:
    home.keys = OutsideKeys()
    with pytest.raises(ConfigurationError, match="needs an agent's key in this process"):
        async with served(home):
            pass


async def test_only_those_on_the_host_are_told_what_is_served(endpoint: Endpoint, channel: Channel) -> None:
    path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
    question = reflection_pb2.ServerReflectionRequest(list_services="*")
    async with endpoint.tcp(endpoint.broker()) as remote:
        stream = remote.bidi(path, reflection_pb2.ServerReflectionResponse, metadata=HEADER)
        async with stream as asked:
            assert await refusal(asked.recv()) == (
                Code.PERMISSION_DENIED,
                "server reflection is only available over Unix sockets",
            )
    async with channel.bidi(path, reflection_pb2.ServerReflectionResponse, metadata=HEADER) as asked:
        await asked.send(question)
        answer = await asked.recv()
        assert answer
        assert "spiffe.broker.API" in [each.name for each in answer.list_services_response.service]


# Which references count


async def test_references_that_a_broker_may_not_use(endpoint: Endpoint, channel: Channel) -> None:
    async with endpoint.tcp(endpoint.broker()) as remote:
        assert await refusal(anext(svids(remote, by_pid(os.getpid())))) == (
            Code.PERMISSION_DENIED,
            f'reference type "{PID_REFERENCE}" is not allowed over TCP for broker "{BROKER}"',
        )
    assert await refusal(tokens(channel, reference(OTHER))) == (
        Code.PERMISSION_DENIED,
        f'broker "{BROKER}" is not allowed to use reference type "{OTHER}"',
    )
    code, text = await refusal(tokens(channel, reference("x" * 1_000_000)))
    assert code is Code.PERMISSION_DENIED
    assert len(text) < 1000


@pytest.mark.parametrize("over_tcp", [False, True])
async def test_a_broker_that_may_use_any_reference(home: Home, over_tcp: bool) -> None:
    home.server.add_entry("a", "/workload", ["test:a"])
    async with served(home, {BROKER: {"*": over_tcp}}) as endpoint:
        endpoint.references.references[b"x"] = ("test:a",)
        async with endpoint.unix(endpoint.broker()) as local, endpoint.tcp(endpoint.broker()) as remote:
            assert await tokens(local, reference(OTHER, b"x"))
            if over_tcp:
                assert await tokens(remote, reference(OTHER, b"x"))
            else:
                assert (await refusal(tokens(remote, reference(OTHER, b"x"))))[0] is Code.PERMISSION_DENIED


@pytest.mark.parametrize("workload", [None, api.WorkloadReference(), reference("", b"x")])
async def test_no_reference(channel: Channel, workload: api.WorkloadReference | None) -> None:
    wanted = (Code.INVALID_ARGUMENT, "workload reference must be provided")
    assert await refusal(anext(svids(channel, workload))) == wanted
    assert await refusal(tokens(channel, workload)) == wanted


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (b"\xff", (Code.INVALID_ARGUMENT, "the pid reference cannot be understood")),
        (b"", (Code.INVALID_ARGUMENT, "the pid reference must be greater than 0: it is 0")),
        (
            api.WorkloadPIDReference(pid=-1).SerializeToString(),
            (Code.INVALID_ARGUMENT, "the pid reference must be greater than 0: it is -1"),
        ),
        (
            api.WorkloadPIDReference(pid=2**31 - 1).SerializeToString(),
            (Code.NOT_FOUND, "there is no process 2147483647"),
        ),
    ],
)
async def test_what_is_no_process(channel: Channel, value: bytes, wanted: tuple[Code, str]) -> None:
    assert await refusal(tokens(channel, reference(PID_REFERENCE, value))) == wanted


async def test_a_process_that_ends_while_it_is_attested(
    endpoint: Endpoint, channel: Channel, process: subprocess.Popen[bytes]
) -> None:
    endpoint.pids.selectors[process.pid] = ("test:a",)

    async def end() -> None:
        process.kill()
        await asyncio.to_thread(process.wait)

    endpoint.pids.meanwhile = end
    found, _ = await refusal(anext(svids(channel, by_pid(process.pid))))
    assert found is Code.NOT_FOUND


async def test_a_reference_that_nobody_knows(channel: Channel) -> None:
    assert await refusal(tokens(channel, reference(OBJECT))) == (
        Code.UNIMPLEMENTED,
        "no workload attestor handled reference",
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Refused("not for you"), Code.PERMISSION_DENIED),
        (InvalidArgument("no such kind"), Code.INVALID_ARGUMENT),
        (RpcError(Code.FAILED_PRECONDITION, "no cluster"), Code.FAILED_PRECONDITION),
    ],
)
async def test_what_an_attestor_says_is_passed_on(
    endpoint: Endpoint, channel: Channel, error: SpireError, code: Code
) -> None:
    endpoint.references.error = error
    found, text = await refusal(tokens(channel, reference(OBJECT)))
    assert found is code
    assert text.startswith('workload attestor "references" failed: ')


async def test_of_a_process_each_attestor_tells_what_it_knows(
    endpoint: Endpoint, channel: Channel, process: subprocess.Popen[bytes], home: Home
) -> None:
    home.server.add_entry("b", "/b", ["test:b"])
    await until(lambda: len(endpoint.agent.managing.cache.entries()) == 2)
    workload = by_pid(process.pid)
    endpoint.pids.selectors[process.pid] = ("test:a",)
    endpoint.references.selectors[process.pid] = ("test:b",)
    # One that knows no references, or not this one, is asked for the process.
    assert len(await tokens(channel, workload)) == 2
    # One that refuses costs its own selectors.
    endpoint.references.error = Refused("not today")
    assert await tokens(channel, workload) == ["spiffe://example.org/workload"]
    endpoint.references.references[workload.reference.value] = ("test:b",)
    assert len(await tokens(channel, workload)) == 2
    # And when all refuse, the first is told.
    endpoint.references.references.clear()
    endpoint.pids.selectors.clear()
    found, text = await refusal(tokens(channel, workload))
    assert found is Code.PERMISSION_DENIED
    assert text == ('workload attestor "pids" failed: not today; workload attestor "references" failed: not today')
