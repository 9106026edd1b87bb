"""The server is away: what workloads have in force stays theirs, also over a restart of the agent."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
from cryptography import x509

from agent import manager
from agent.denial import Unwelcome
from agent.store.store import NAME
from generated.grpc.health.v1 import health_pb2
from generated.spiffe.workload import workload_pb2
from generated.spire.api.types import bundle_pb2
from keystores.disk import DiskKeyManager
from operations.errors import SpireError
from tests.simulators.fake_server import Authority, FakeServer
from tests.simulators.in_process_agent import PATIENCE, Home, RunningAgent, until
from transport.status import Code, RpcError

X509 = ("FetchX509SVID", workload_pb2.X509SVIDRequest(), workload_pb2.X509SVIDResponse)
BUNDLES = ("FetchX509Bundles", workload_pb2.X509BundlesRequest(), workload_pb2.X509BundlesResponse)
JWT = ("FetchJWTSVID", workload_pb2.JWTSVIDRequest(audience=["billing"]), workload_pb2.JWTSVIDResponse)


class House:
    """A server that comes and goes, and an agent's folder with keys that last."""

    def __init__(self, folder: Path, keys: DiskKeyManager) -> None:
        self.server = FakeServer()
        self.home = Home(folder, self.server, keys, settings=manager.Settings(sync_interval=0.2))
        self._running = AsyncExitStack()

    async def arrive(self) -> None:
        await self._running.enter_async_context(self.server.running())

    async def leave(self) -> None:
        await self._running.aclose()


@pytest.fixture
async def house(tmp_path: Path) -> AsyncGenerator[House]:
    keys = await DiskKeyManager.open(tmp_path / "keys.json")
    made = House(tmp_path, keys)
    await made.arrive()
    yield made
    await made.leave()
    await keys.close()


async def is_healthy(agent: RunningAgent) -> bool:
    answer = await agent.channel.unary(
        "/grpc.health.v1.Health/Check",
        health_pb2.HealthCheckRequest(),
        health_pb2.HealthCheckResponse,
        timeout=PATIENCE,
    )
    return answer.status == health_pb2.HealthCheckResponse.SERVING


def serial(chain: bytes) -> int:
    return x509.load_der_x509_certificate(chain).serial_number


async def test_a_restarted_agent_serves_what_is_in_force(house: House) -> None:
    server = house.server
    server.add_entry("a", federates_with=["other.org"])
    server.federated["other.org"] = bundle_pb2.Bundle(
        trust_domain="other.org",
        x509_authorities=[bundle_pb2.X509Certificate(asn1=Authority(server.trust_domain).der)],
    )
    async with house.home.running() as agent:
        before = await agent.first(*X509)
        token = await agent.ask(*JWT)
        bundles = await agent.first(*BUNDLES)
    assert (house.home.folder / NAME).exists()
    await house.leave()
    async with house.home.running() as agent:
        assert await agent.first(*X509) == before
        assert await agent.ask(*JWT) == token
        assert await agent.first(*BUNDLES) == bundles
        assert await is_healthy(agent)
        assert "from what was kept before the restart; the server is away" in agent.managing.status
        assert server.calls["AttestAgent"] == 1
        del server.entries["a"]
        server.add_entry("b", "/later")
        await house.arrive()
        await until(lambda: agent.managing.cache.svid_count == 1 and "b" in agent.managing.cache.svids())
        assert [each.spiffe_id for each in (await agent.first(*X509)).svids] == ["spiffe://example.org/later"]
        assert agent.managing.status.endswith("as spiffe://example.org/spire/agent/join_token/token")
        assert server.calls["PostStatus"] == 2


async def test_with_its_server_there_a_restarted_agent_takes_no_entry_that_is_gone(house: House) -> None:
    house.server.add_entry("a")
    async with house.home.running() as agent:
        await agent.first(*X509)
    del house.server.entries["a"]
    async with house.home.running() as agent:
        with pytest.raises(RpcError, match="no identity issued"):
            await agent.first(*X509)


async def test_unchanged_entries_are_not_asked_for_again(house: House) -> None:
    server = house.server
    for number in range(5):
        server.add_entry(str(number), f"/w{number}")
    async with house.home.running() as agent:
        await until(lambda: agent.managing.cache.svid_count == 5)
    asked, issued = server.calls["entries asked for"], server.calls["BatchNewX509SVID"]
    async with house.home.running() as agent:
        await agent.first(*X509)
        assert agent.managing.last_sync
    assert (server.calls["entries asked for"], server.calls["BatchNewX509SVID"]) == (asked, issued)


async def test_what_has_expired_is_not_served(house: House) -> None:
    server = house.server
    server.svid_ttl = 2
    server.add_entry("a")
    async with house.home.running() as agent:
        await agent.first(*X509)
        await house.leave()
        ended = time.time() + 2
    async with house.home.running() as agent:
        stream = aiter(agent.stream(*X509))
        with suppress(TimeoutError):
            while True:
                async with asyncio.timeout(3):
                    response = await anext(stream)
                assert time.time() < ended + 1
                assert response.svids
        assert await agent.first(*BUNDLES)
        await house.arrive()
        assert (await agent.first(*X509)).svids


async def test_what_is_missing_does_not_hold_up_what_is_there(house: House) -> None:
    server = house.server
    server.add_entry("a")
    async with house.home.running() as agent:
        before = (await agent.first(*X509)).svids[0].x509_svid
        server.refused_entries.add("b")
        server.add_entry("b", "/b")
        await until(lambda: agent.managing.cache.entry_count == 2)
        server.failing = RpcError(Code.UNAVAILABLE, "away")
        response = await agent.first(*X509)
        assert [each.x509_svid for each in response.svids] == [before]


async def test_an_agent_whose_own_svid_expired_serves_and_attests_when_it_can(house: House) -> None:
    server = house.server
    server.agent_ttl = 2
    server.add_entry("a")
    async with house.home.running() as agent:
        before = await agent.first(*X509)
        await house.leave()
    await asyncio.sleep(3.1)
    server.evict()
    house.home.token = "another"
    server.tokens.add("another")
    server.agent_ttl = 3600
    async with house.home.running() as agent:
        assert agent.managing.svid.expires < time.time()
        assert await agent.first(*X509) == before
        assert await is_healthy(agent)
        await house.arrive()
        await until(lambda: server.calls["AttestAgent"] == 2 and agent.managing.last_sync)
        assert await agent.first(*X509) == before
        assert str(agent.managing.svid.spiffe_id).endswith("/another")


async def test_one_that_may_not_attest_again_ends_when_the_server_says_so(house: House) -> None:
    server = house.server
    server.agent_ttl = 2
    server.add_entry("a")
    async with house.home.running() as agent:
        before = await agent.first(*X509)
        await house.leave()
        await until(lambda: agent.managing.svid.expires < time.time())
        assert await agent.first(*X509) == before
        assert not agent.task.done()
        await asyncio.sleep(1.1)  # a certificate is in force until the end of its last second
        await house.arrive()
        with pytest.raises(SpireError, match="join token does not exist"):
            await asyncio.wait_for(agent.task, PATIENCE)


async def test_an_svid_that_expires_in_the_midst_of_an_outage_is_made_good_after_it(house: House) -> None:
    server = house.server
    server.reattestable = True
    server.agent_ttl = 3
    server.add_entry("a")
    async with house.home.running() as agent:
        before = await agent.first(*X509)
        await house.leave()
        await until(lambda: agent.managing.svid.expires < time.time())
        await asyncio.sleep(0.5)
        assert await agent.first(*X509) == before
        assert not agent.task.done()
        server.agent_ttl = 3600
        since = time.time()
        await house.arrive()
        await until(lambda: agent.managing.last_sync > since)
        assert agent.managing.svid.expires > time.time() + 1000


async def test_an_agent_that_is_not_welcome_leaves_nothing_to_serve(house: House) -> None:
    house.server.add_entry("a")
    async with house.home.running() as agent:
        await agent.first(*X509)
    store = house.home.folder / NAME
    copy = store.read_bytes()
    house.server.banned = True
    with pytest.raises(Unwelcome, match="banned"):
        async with house.home.running():
            pass
    assert not store.exists()
    store.write_bytes(copy)
    await house.leave()
    start = house.home.start()
    assert await start.store.load(agent.managing.svid.spiffe_id) is None


async def test_an_eviction_in_the_midst_of_it_is_not_overwritten_at_the_end(house: House) -> None:
    house.server.add_entry("a")
    async with house.home.running() as agent:
        await agent.first(*X509)
        house.server.evict()
        with pytest.raises(Unwelcome):
            await asyncio.wait_for(agent.task, PATIENCE)
    assert not (house.home.folder / NAME).exists()


async def test_a_server_that_takes_connections_and_says_nothing_does_not_hold_up_the_start(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.manager.HEAD_START", 0.3)
    house.server.add_entry("a")
    async with house.home.running() as agent:
        before = await agent.first(*X509)
    await house.leave()
    with socket.socket() as silent:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        silent.bind(("127.0.0.1", house.server.port))
        silent.listen()
        began = time.monotonic()
        async with house.home.running() as agent:
            assert await agent.first(*X509) == before
            assert time.monotonic() - began < manager.HEAD_START + 15


async def test_a_token_past_half_its_life_is_given_at_once_while_the_server_is_away(house: House) -> None:
    house.server.svid_ttl = 20
    house.server.add_entry("a")
    async with house.home.running() as agent:
        token = await agent.ask(*JWT)
        await house.leave()
        await until(lambda: agent.managing.outage.now)
        [cached] = agent.managing.jwt_cache.svids().values()
        await until(lambda: cached.expires_soon(time.time()))
        began = time.monotonic()
        assert await agent.ask(*JWT) == token
        assert time.monotonic() - began < 5


async def test_without_anything_kept_a_start_waits_for_the_server(house: House) -> None:
    await house.leave()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1), house.home.running():
            pass


async def test_what_the_server_takes_away_is_taken_away_from_the_store(house: House) -> None:
    server = house.server
    server.add_entry("a")
    async with house.home.running() as agent:
        await agent.first(*X509)
    del server.entries["a"]
    async with house.home.running() as agent:
        await until(lambda: not agent.managing.cache.entry_count)
        spiffe_id = agent.managing.svid.spiffe_id
    assert await house.home.start().store.load(spiffe_id) is None
