from __future__ import annotations

import asyncio
import errno
import os
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509

from agent import manager
from agent.denial import Unwelcome, is_unknown_authority, must_reattest
from agent.startup import attested
from agent.trust import Trust
from generated.spiffe.workload import workload_pb2
from keystores.memory import MemoryKeyManager
from operations.errors import ConfigurationError, Corrupt, Refused
from tests.simulators.fake_server import Authority, FakeServer
from tests.simulators.in_process_agent import PATIENCE, Home, RunningAgent, until
from transport.status import Code, RpcError

X509 = ("FetchX509SVID", workload_pb2.X509SVIDRequest(), workload_pb2.X509SVIDResponse)


def serial(chain: bytes) -> int:
    return x509.load_der_x509_certificate(chain).serial_number


def expires(chain: bytes) -> float:
    return x509.load_der_x509_certificate(chain).not_valid_after_utc.timestamp()


async def test_a_restart_goes_on_with_the_same_svid(home: Home, server: FakeServer) -> None:
    async with home.running() as agent:
        first = agent.storage.state.svid
    assert first
    async with home.running() as agent:
        assert agent.storage.state.svid == first
    assert server.calls["AttestAgent"] == 1
    assert server.calls["PostStatus"] == 2


async def test_without_its_key_the_agent_attests_anew(home: Home, server: FakeServer) -> None:
    async with home.running():
        pass
    home.keys = MemoryKeyManager()
    server.tokens.add("token")
    async with home.running():
        pass
    assert server.calls["AttestAgent"] == 2


async def test_a_stranger_in_the_servers_place_is_not_trusted(home: Home, server: FakeServer) -> None:
    start = home.start()
    (home.folder / "bundle.pem").write_text(Authority(server.trust_domain).pem)
    waiting = asyncio.ensure_future(attested(start))
    await asyncio.sleep(0.5)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert server.calls["AttestAgent"] == 0


async def test_a_missing_token_ends_at_once(home: Home) -> None:
    home.token = ""
    with pytest.raises(ConfigurationError, match="join token was not provided"):
        await attested(home.start())


async def test_a_damaged_stored_bundle_ends_at_once_and_stays_as_it_is(home: Home, server: FakeServer) -> None:
    start = home.start()
    start.storage.store_bundle((b"garbage",))
    with pytest.raises(Corrupt, match=r"agent-data\.json"):
        await attested(start)
    assert home.start().storage.state.bundle == (b"garbage",)
    assert server.tokens == {"token"}


@pytest.mark.parametrize("by_revision", [True, False])
async def test_entries_come_by_pages_or_all_at_once(home: Home, server: FakeServer, by_revision: bool) -> None:
    server.by_revision = by_revision
    for number in range(7):
        server.add_entry(str(number), f"/w{number}")
    async with home.running() as agent:
        cache = agent.managing.cache
        await until(lambda: cache.svid_count == 7)
        asked = server.calls["entries asked for"]
        server.add_entry("3", "/changed", revision_number=1)
        del server.entries["5"]
        await until(lambda: cache.svid_count == 6)
        response = await agent.first(*X509)
        await until(lambda: "5" not in cache.svids())
        while "spiffe://example.org/changed" not in [each.spiffe_id for each in response.svids]:
            response = await agent.first(*X509)
        if by_revision:
            assert server.calls["entries asked for"] == asked + 1
        else:
            assert server.calls["SyncAuthorizedEntries"] == 1


async def test_a_refused_entry_does_not_hold_up_the_others(home: Home, server: FakeServer) -> None:
    server.add_entry("good", selectors=["unix:uid:1"])
    server.add_entry("bad")
    server.refused_entries.add("bad")
    async with home.running() as agent:
        agent.attestor.selectors = ("unix:uid:1",)
        assert len((await agent.first(*X509)).svids) == 1


async def test_storable_entries_are_not_for_workloads(home: Home, server: FakeServer) -> None:
    server.add_entry("a", store_svid=True)
    async with home.running() as agent:
        with pytest.raises(RpcError, match="no identity issued"):
            await agent.first(*X509)
        server.add_entry("a", revision_number=1)
        await until(lambda: agent.managing.cache.svid_count == 1)
        server.add_entry("a", revision_number=2, store_svid=True)
        await until(lambda: agent.managing.cache.svid_count == 0)


async def test_workload_svids_rotate_without_a_gap(home: Home, server: FakeServer) -> None:
    server.svid_ttl = 3
    server.add_entry("a")
    seen: set[int] = set()
    async with home.running() as agent, asyncio.timeout(PATIENCE):
        stream = aiter(agent.stream(*X509))
        while len(seen) < 4:
            svid = (await anext(stream)).svids[0].x509_svid
            assert expires(svid) > time.time()
            seen.add(serial(svid))
            # What a workload gets that asks anew is in force as well.
            again = (await agent.first(*X509)).svids[0].x509_svid
            assert expires(again) > time.time()


async def test_the_agents_own_svid_rotates_without_a_refused_call(home: Home, server: FakeServer) -> None:
    server.agent_ttl = 6
    server.svid_ttl = 6
    server.add_entry("a")
    home.settings = manager.Settings(sync_interval=0.05)
    async with home.running() as agent:
        first = agent.storage.state.svid
        await until(lambda: server.calls["RenewAgent"] >= 2 or agent.task.done())
        server.agent_ttl = 600  # so that the last one is good at the next start
        await until(lambda: server.calls["RenewAgent"] >= 3 or agent.task.done())
        assert not agent.task.done()
        assert agent.storage.state.svid != first
        # As many keys as the two ids, however often it rotates.
        assert [key.id for key in await home.keys.list()] == ["agent-svid-A", "agent-svid-B"]
    async with home.running():
        assert server.calls["AttestAgent"] == 1


async def test_a_reattestable_agent_attests_instead_of_renewing(home: Home, server: FakeServer) -> None:
    server.agent_ttl = 3
    server.reattestable = True
    async with home.running() as agent:
        await until(lambda: server.calls["AttestAgent"] >= 3)
        assert not agent.task.done()
    assert server.calls["RenewAgent"] == 0


async def test_an_evicted_agent_ends_and_forgets_its_svid(home: Home, server: FakeServer) -> None:
    async with home.running() as agent:
        server.evict()
        with pytest.raises(Unwelcome, match="attest anew"):
            await asyncio.wait_for(agent.task, PATIENCE)
        assert agent.storage.state.svid == ()
        assert agent.storage.state.bundle


async def test_an_evicted_agent_that_may_attests_anew(home: Home, server: FakeServer) -> None:
    server.reattestable = True
    server.add_entry("a")
    async with home.running() as agent:
        server.evict()
        await until(lambda: server.calls["AttestAgent"] == 2)
        assert len((await agent.first(*X509)).svids) == 1
        assert not agent.task.done()


async def test_a_banned_agent_ends_and_forgets_its_svid(home: Home, server: FakeServer) -> None:
    server.reattestable = True
    async with home.running() as agent:
        server.banned = True
        with pytest.raises(Unwelcome, match="banned"):
            await asyncio.wait_for(agent.task, PATIENCE)
        assert agent.storage.state.svid == ()
    assert server.calls["AttestAgent"] == 1


async def test_an_agent_evicted_while_away_ends_at_its_start(home: Home, server: FakeServer) -> None:
    async with home.running() as agent:
        pass
    server.evict()
    with pytest.raises(Unwelcome, match="attest anew"):
        async with home.running():
            pass
    assert home.start().storage.state.svid == ()
    assert agent.storage.state.svid


async def test_an_agent_killed_over_a_new_svid_attests_anew_at_its_start(home: Home, server: FakeServer) -> None:
    server.reattestable = True
    server.add_entry("a")
    async with home.running():
        pass
    server.supersede()
    async with home.running() as agent:
        assert server.calls["AttestAgent"] == 2
        assert len((await agent.first(*X509)).svids) == 1
        assert not agent.task.done()


async def test_one_that_can_attest_only_once_ends_then(home: Home, server: FakeServer) -> None:
    async with home.running():
        pass
    server.supersede()
    with pytest.raises(Unwelcome, match="attest anew"):
        async with home.running():
            pass
    assert home.start().storage.state.svid == ()


async def test_a_server_with_other_keys_ends_the_agent_which_keeps_what_it_has(tmp_path: Path) -> None:
    server = FakeServer()
    listening = AsyncExitStack()
    await listening.enter_async_context(server.running())
    async with Home(tmp_path, server).running() as agent:
        await listening.aclose()
        server.authority = Authority(server.trust_domain)
        async with server.running():
            with pytest.raises(Unwelcome, match=r"remove agent-data\.json"):
                await asyncio.wait_for(agent.task, PATIENCE)
        assert agent.storage.state.svid


async def test_workloads_are_served_while_the_server_is_away(agent: RunningAgent, server: FakeServer) -> None:
    await agent.first(*X509)
    server.failing = RpcError(Code.UNAVAILABLE, "away")
    failed = server.calls["SyncAuthorizedEntries"]
    await until(lambda: server.calls["SyncAuthorizedEntries"] >= failed + 2)
    assert len((await agent.first(*X509)).svids) == 1
    server.failing = None
    server.add_entry("b", "/later")
    await until(lambda: agent.managing.cache.svid_count == 2)
    assert len((await agent.first(*X509)).svids) == 2


async def test_what_a_tainted_authority_signed_is_renewed(agent: RunningAgent, server: FakeServer) -> None:
    before = (await agent.first(*X509)).svids[0].x509_svid
    own = agent.storage.state.svid
    server.rotate_authority()
    async with asyncio.timeout(PATIENCE):
        stream = aiter(agent.stream(*X509))
        while serial((await anext(stream)).svids[0].x509_svid) == serial(before):
            pass
    await until(lambda: agent.storage.state.svid != own)
    fresh = x509.load_der_x509_certificate(agent.storage.state.svid[0])
    fresh.verify_directly_issued_by(x509.load_der_x509_certificate(server.authority.der))


async def test_what_stands_below_a_tainted_upstream_is_renewed(tmp_path: Path) -> None:
    server = FakeServer(below_upstream=True)
    server.add_entry("a")
    async with server.running(), Home(tmp_path, server).running() as agent:
        before = (await agent.first(*X509)).svids[0].x509_svid
        own = agent.storage.state.svid
        assert own[1:] == (server.authority.der,)
        server.rotate_authority()
        async with asyncio.timeout(PATIENCE):
            stream = aiter(agent.stream(*X509))
            while (fresh := (await anext(stream)).svids[0].x509_svid) == before:
                pass
        assert fresh.endswith(server.authority.der)
        await until(lambda: agent.storage.state.svid[1:] == (server.authority.der,))


async def test_the_bundle_is_stored_when_it_changes(agent: RunningAgent, server: FakeServer) -> None:
    server.rotate_authority()
    await until(lambda: server.authority.der in agent.storage.state.bundle)


async def test_a_full_disk_does_not_end_the_agent(
    home: Home, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    server.add_entry("a")
    monkeypatch.setattr("operations.files.write_atomically", full)
    async with home.running() as agent:
        assert (await agent.first(*X509)).svids
        assert agent.storage.state.svid == ()


async def test_insecure_bootstrap_takes_any_server_of_the_right_name(home: Home, server: FakeServer) -> None:
    start = home.start()
    source = replace(start.trust.source, path="")
    found = await attested(replace(start, trust=Trust(source, start.storage)))
    assert [each.der for each in found.bundle.x509_authorities] == [server.authority.der]


def test_errors_know_their_causes() -> None:
    assert not is_unknown_authority(Refused("no"))
    assert not must_reattest(RpcError(Code.PERMISSION_DENIED, "authorization denied"))
