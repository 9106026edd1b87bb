"""Identities for a delegate, which is told of every change, held to bounds, and nobody else's business."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_der_private_key

from agent.caller_limits import CallerLimits
from agent.delegated_identity import MOST_SELECTORS, DelegatedIdentity
from agent.workload_attestation import WorkloadAttestation
from generated.spire.api.agent.delegatedidentity.v1 import delegatedidentity_pb2 as api
from generated.spire.api.types import bundle_pb2, selector_pb2
from identity.selectors import Selector
from operations.errors import Refused
from operations.prometheus import Prometheus
from tests.simulators.in_process_agent import PATIENCE, Home, RunningAgent, until
from transport.client import Channel
from transport.peer import Process
from transport.router import Router
from transport.server import Server
from transport.status import Code, RpcError

PATH = "/spire.api.agent.delegatedidentity.v1.DelegatedIdentity/"
DELEGATE = "spiffe://example.org/delegate"
ME = "test:delegate"


@dataclass
class ByPid:
    """Says of each process what the test says; the delegate is this one."""

    selectors: dict[int, Sequence[str]] = field(default_factory=lambda: {os.getpid(): (ME,)})
    meanwhile: Callable[[], Awaitable[None]] | None = None
    name: str = "test"

    async def attest(self, process: Process) -> Sequence[Selector]:
        if self.meanwhile is not None and process.pid != os.getpid():
            await self.meanwhile()
        if process.pid not in self.selectors:
            raise Refused("not today")
        return [Selector.parse(each) for each in self.selectors[process.pid]]


@dataclass
class Delegate:
    agent: RunningAgent
    attestor: ByPid
    channel: Channel

    def svids(self, *selectors: str, pid: int = 0) -> AsyncGenerator[api.SubscribeToX509SVIDsResponse, None]:
        request = api.SubscribeToX509SVIDsRequest(selectors=proto(*selectors), pid=pid)
        return self.channel.server_stream(
            PATH + "SubscribeToX509SVIDs", request, api.SubscribeToX509SVIDsResponse, timeout=PATIENCE
        )

    def x509_bundles(self) -> AsyncGenerator[api.SubscribeToX509BundlesResponse, None]:
        request = api.SubscribeToX509BundlesRequest()
        return self.channel.server_stream(
            PATH + "SubscribeToX509Bundles", request, api.SubscribeToX509BundlesResponse, timeout=PATIENCE
        )

    def jwt_bundles(self) -> AsyncGenerator[api.SubscribeToJWTBundlesResponse, None]:
        request = api.SubscribeToJWTBundlesRequest()
        return self.channel.server_stream(
            PATH + "SubscribeToJWTBundles", request, api.SubscribeToJWTBundlesResponse, timeout=PATIENCE
        )

    async def tokens(self, *selectors: str, pid: int = 0, audience: str = "x") -> api.FetchJWTSVIDsResponse:
        request = api.FetchJWTSVIDsRequest(
            audience=[audience] if audience else [], selectors=proto(*selectors), pid=pid
        )
        return await self.channel.unary(PATH + "FetchJWTSVIDs", request, api.FetchJWTSVIDsResponse, timeout=PATIENCE)


def proto(*selectors: str) -> list[selector_pb2.Selector]:
    return [selector_pb2.Selector(type=kind, value=value) for kind, _, value in (s.partition(":") for s in selectors)]


def ids(response: api.SubscribeToX509SVIDsResponse) -> list[str]:
    return [each.x509_svid.id.path for each in response.x509_svids]


@asynccontextmanager
async def served(home: Home, limits: CallerLimits | None = None) -> AsyncGenerator[Delegate, None]:
    async with home.running() as agent:
        attestor, router = ByPid(), Router()
        managing = agent.managing
        DelegatedIdentity(
            [DELEGATE], WorkloadAttestation([attestor]), managing.cache, managing.jwt_svids, limits=limits
        ).add_to(router)
        path = str(home.folder / "delegates.sock")
        server = Server(router)
        await server.listen_unix(path, mode=0o770)
        try:
            async with Channel.unix(path) as channel:
                yield Delegate(agent, attestor, channel)
        finally:
            await server.drain(0)


@pytest.fixture
async def delegate(home: Home) -> AsyncGenerator[Delegate, None]:
    home.server.add_entry("delegate", "/delegate", [ME])
    home.server.add_entry("a", "/workload", ["test:a"])
    async with served(home) as found:
        yield found


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        yield child
        child.kill()


async def code(answer: Awaitable[object]) -> tuple[Code, str]:
    with pytest.raises(RpcError) as caught:
        async with asyncio.timeout(PATIENCE):
            await answer
    return caught.value.code, caught.value.message


async def test_svids_with_their_keys(delegate: Delegate) -> None:
    response = await anext(delegate.svids("test:a"))
    (svid,) = response.x509_svids
    leaf = x509.load_der_x509_certificate(svid.x509_svid.cert_chain[0])
    assert load_der_private_key(svid.x509_svid_key, None).public_key() == leaf.public_key()
    assert svid.x509_svid.expires_at == int(leaf.not_valid_after_utc.timestamp())
    assert (svid.x509_svid.id.trust_domain, svid.x509_svid.id.path) == ("example.org", "/workload")
    assert list(response.federates_with) == []


async def test_all_but_what_commands_servers_whatever_the_hints(home: Home) -> None:
    home.server.add_entry("delegate", "/delegate", [ME])
    for entry_id, more in (
        ("c", {"hint": "x"}),
        ("b", {"hint": "x"}),
        ("d", {"admin": True}),
        ("e", {"downstream": True}),
    ):
        home.server.add_entry(entry_id, f"/{entry_id}", ["test:a"], **more)
    async with served(home) as delegate:
        response = await anext(delegate.svids("test:a", "test:z"))
        assert [(each.x509_svid.id.path, each.x509_svid.hint) for each in response.x509_svids] == [
            ("/b", "x"),
            ("/c", "x"),
        ]
        tokens = await delegate.tokens("test:a")
        assert [(each.id.path, each.hint) for each in tokens.svids] == [("/b", "x"), ("/c", "x")]


async def test_a_stream_hears_of_every_change_and_of_no_identity_too(delegate: Delegate, home: Home) -> None:
    async with asyncio.timeout(PATIENCE):
        stream = delegate.svids("test:a", "test:b")
        assert ids(await anext(stream)) == ["/workload"]
        home.server.federated["other.org"] = bundle_pb2.Bundle(trust_domain="other.org")
        home.server.add_entry("b", "/second", ["test:b"], federates_with=["other.org"])
        while ids(response := await anext(stream)) != ["/workload", "/second"]:
            pass
        assert list(response.federates_with) == ["spiffe://other.org"]
        del home.server.entries["a"], home.server.entries["b"]
        while ids(await anext(stream)):
            pass


async def test_unknown_selectors_are_no_error(delegate: Delegate, home: Home) -> None:
    async with asyncio.timeout(PATIENCE):
        stream = delegate.svids("test:later")
        assert ids(await anext(stream)) == []
        home.server.add_entry("later", "/later", ["test:later"])
        assert ids(await anext(stream)) == ["/later"]


async def test_a_stream_ends_at_the_next_change_once_the_delegate_is_none_any_more(
    delegate: Delegate, home: Home
) -> None:
    async with asyncio.timeout(PATIENCE):
        svids, bundles = delegate.svids("test:a"), delegate.x509_bundles()
        await anext(svids)
        await anext(bundles)
        del home.server.entries["delegate"]
        await until(lambda: "delegate" not in delegate.agent.managing.cache.entries())
        home.server.federated["other.org"] = bundle_pb2.Bundle(trust_domain="other.org")
        home.server.add_entry("b", "/second", ["test:a"], federates_with=["other.org"])
        for stream in (svids, bundles):
            assert await code(anext(stream)) == (Code.PERMISSION_DENIED, "no identity issued")


async def test_bundles_of_all_trust_domains_as_they_come_and_go(delegate: Delegate, home: Home) -> None:
    root = home.server.authority.der
    async with asyncio.timeout(PATIENCE):
        certificates, keys = delegate.x509_bundles(), delegate.jwt_bundles()
        assert (await anext(certificates)).ca_certificates == {"spiffe://example.org": root}
        assert json.loads((await anext(keys)).bundles["spiffe://example.org"]) == {"keys": []}
        home.server.federated["other.org"] = bundle_pb2.Bundle(
            trust_domain="other.org", x509_authorities=[bundle_pb2.X509Certificate(asn1=root)]
        )
        home.server.add_entry("b", "/second", ["test:b"], federates_with=["other.org"])
        assert (await anext(certificates)).ca_certificates == {
            "spiffe://example.org": root,
            "spiffe://other.org": root,
        }
        assert set((await anext(keys)).bundles) == {"spiffe://example.org", "spiffe://other.org"}
        del home.server.entries["b"]
        assert set((await anext(certificates)).ca_certificates) == {"spiffe://example.org"}


async def test_tokens(delegate: Delegate) -> None:
    (svid,) = (await delegate.tokens("test:a")).svids
    assert (svid.id.trust_domain, svid.id.path, svid.hint) == ("example.org", "/workload", "")
    assert svid.token
    assert svid.expires_at > svid.issued_at > 0
    assert await code(delegate.tokens("test:none")) == (Code.PERMISSION_DENIED, "no identity issued")
    assert await code(delegate.tokens("test:a", audience="")) == (
        Code.INVALID_ARGUMENT,
        "audience must be specified",
    )


async def test_tokens_while_the_server_is_away(delegate: Delegate, home: Home) -> None:
    home.server.failing = RpcError(Code.UNKNOWN, "away")
    found, text = await code(delegate.tokens("test:a"))
    assert found is Code.UNAVAILABLE
    assert text.startswith("could not fetch JWT-SVID: ")


async def test_a_process_by_its_pid(delegate: Delegate, process: subprocess.Popen[bytes]) -> None:
    delegate.attestor.selectors[process.pid] = ("test:a",)
    assert ids(await anext(delegate.svids(pid=process.pid))) == ["/workload"]
    assert (await delegate.tokens(pid=process.pid)).svids[0].id.path == "/workload"


@pytest.mark.parametrize("pid", [-1, 2**31 - 1])
async def test_no_process(delegate: Delegate, pid: int) -> None:
    wanted = (Code.UNAVAILABLE, "workload attestation failed")
    assert await code(anext(delegate.svids(pid=pid))) == wanted
    assert await code(delegate.tokens(pid=pid)) == wanted


async def test_a_process_that_ends_while_it_is_attested(delegate: Delegate, process: subprocess.Popen[bytes]) -> None:
    """Whatever is found out about its pid from then on may be of another process."""
    delegate.attestor.selectors[process.pid] = ("test:a",)

    async def end() -> None:
        process.kill()
        await asyncio.to_thread(process.wait)

    delegate.attestor.meanwhile = end
    assert await code(anext(delegate.svids(pid=process.pid))) == (Code.UNAVAILABLE, "workload attestation failed")


async def test_a_process_that_no_attestor_can_examine(delegate: Delegate, process: subprocess.Popen[bytes]) -> None:
    assert await code(delegate.tokens(pid=process.pid)) == (Code.UNAVAILABLE, "workload attestation failed")


NEITHER = "must provide either selectors or non-zero PID, but not both"
UNREADABLE = "could not parse provided selectors"


@pytest.mark.parametrize(
    ("selectors", "pid", "text"),
    [
        ([], 0, NEITHER),
        (["test:a"], 1, NEITHER),
        (["test:"], 0, UNREADABLE),
        ([":a"], 0, UNREADABLE),
        (
            [f"test:{number}" for number in range(MOST_SELECTORS + 1)],
            0,
            f"{MOST_SELECTORS + 1} selectors are too many: at most {MOST_SELECTORS} are matched",
        ),
    ],
)
async def test_what_names_no_workload(delegate: Delegate, selectors: list[str], pid: int, text: str) -> None:
    assert await code(anext(delegate.svids(*selectors, pid=pid))) == (Code.INVALID_ARGUMENT, text)
    assert await code(delegate.tokens(*selectors, pid=pid)) == (Code.INVALID_ARGUMENT, text)


async def everything(delegate: Delegate) -> set[tuple[Code, str]]:
    streams = (delegate.svids("test:a"), delegate.x509_bundles(), delegate.jwt_bundles())
    return {*[await code(anext(each)) for each in streams], await code(delegate.tokens("test:a"))}


async def test_who_is_no_delegate(delegate: Delegate, home: Home) -> None:
    home.server.entries["delegate"].spiffe_id.path = "/other"
    home.server.entries["delegate"].revision_number += 1
    cache = delegate.agent.managing.cache
    await until(lambda: cache.entries()["delegate"].spiffe_id != DELEGATE)
    denied = "caller not configured as an authorized delegate"
    assert await everything(delegate) == {(Code.PERMISSION_DENIED, denied)}


async def test_who_is_nobody(delegate: Delegate) -> None:
    delegate.attestor.selectors[os.getpid()] = ("test:nobody",)
    assert await everything(delegate) == {(Code.PERMISSION_DENIED, "no identity issued")}


async def test_who_cannot_be_attested(delegate: Delegate) -> None:
    delegate.attestor.selectors.clear()
    assert await everything(delegate) == {(Code.UNAVAILABLE, "workload attestation failed")}


async def test_a_delegate_has_so_many_streams_and_may_close_some(home: Home) -> None:
    home.server.add_entry("delegate", "/delegate", [ME])
    async with served(home, CallerLimits(3)) as delegate:
        streams = [delegate.svids("test:a"), delegate.x509_bundles(), delegate.jwt_bundles()]
        for stream in streams:
            await anext(stream)
        assert (await code(anext(delegate.svids("test:a"))))[0] is Code.RESOURCE_EXHAUSTED
        await streams.pop().aclose()
        async with asyncio.timeout(PATIENCE):
            while await _is_refused(delegate.svids("test:a")):  # noqa: ASYNC110 - the server hears of it some time
                await asyncio.sleep(0.02)


async def test_selectors_of_all_streams_together_have_a_limit(delegate: Delegate) -> None:
    streams = [delegate.svids(*(f"test:{number}-{each}" for each in range(MOST_SELECTORS))) for number in range(24)]
    refused = [await _is_refused(stream) for stream in streams]
    assert 0 < sum(refused) < len(streams)
    assert ids(await anext(delegate.svids("test:a"))) == ["/workload"], "small ones go on"
    for stream in streams:
        await stream.aclose()


async def test_calls_are_counted_and_the_first_svids_timed(sink: Prometheus, delegate: Delegate) -> None:
    await anext(delegate.svids("test:none"))
    assert not any("first_update" in line for line in sink.text().splitlines())
    await anext(delegate.svids("test:a"))
    await delegate.tokens("test:a")
    lines = sink.text().splitlines()
    assert "spire_agent_delegated_identity_api_subscribe_x509_svids_first_update_elapsed_time_count 1" in lines


async def test_who_reads_nothing_costs_the_others_nothing(delegate: Delegate, home: Home) -> None:
    unread = [delegate.svids("test:a", f"test:{number}") for number in range(200)]
    waiting = [asyncio.ensure_future(anext(each)) for each in unread]
    await asyncio.gather(*waiting)
    for number in range(20):
        home.server.add_entry(f"n{number}", f"/n{number}", ["test:a"])
    async with asyncio.timeout(PATIENCE):
        stream = delegate.svids("test:a")
        while len(ids(await anext(stream))) != 21:
            pass
    for each in unread:
        await each.aclose()


async def _is_refused(stream: AsyncIterator[object]) -> bool:
    """Whether the stream ends because there are too many."""
    try:
        await anext(stream)
    except RpcError as error:
        if error.code is not Code.RESOURCE_EXHAUSTED:
            raise
        return True
    return False


async def test_workloads_have_none_of_it(delegate: Delegate) -> None:
    with pytest.raises(RpcError) as caught:
        await delegate.agent.channel.unary(
            PATH + "FetchJWTSVIDs", api.FetchJWTSVIDsRequest(), api.FetchJWTSVIDsResponse, timeout=PATIENCE
        )
    assert caught.value.code is Code.UNIMPLEMENTED
