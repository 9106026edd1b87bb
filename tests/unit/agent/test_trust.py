"""When the trust bundle is fetched anew, against Go's rules, and what is remembered of it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from agent.bootstrap import TrustBundleSource, bootstrap_bundle
from agent.denial import Unwelcome
from agent.startup import attested
from agent.storage import Bootstrapping, Storage, Use
from agent.store.store import NAME
from agent.trust import Mode, Rebootstrap, Trust
from generated.spiffe.workload import workload_pb2
from identity.spiffeid import TrustDomain
from keystores.disk import DiskKeyManager
from operations.errors import ConfigurationError, InvalidArgument, TemporarilyUnavailable
from tests.simulators.fake_server import Authority, FakeServer
from tests.simulators.in_process_agent import PATIENCE, Home, until
from transport.peer import Peer
from transport.router import Context, Router
from transport.server import Server

TD = TrustDomain("example.org")
ASKING = Bootstrapping(Use.BOOTSTRAP)
AT_ONCE = Rebootstrap(Mode.ALWAYS, 0.0)


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def trust_of(folder: Path, settings: Rebootstrap, clock: Clock) -> Trust:
    return Trust(TrustBundleSource(TD, "h", 1), Storage.open(str(folder)), settings, clock)


async def test_a_server_met_for_the_first_time_is_bootstrapped_from_again_at_once(
    home: Home, server: FakeServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.startup._RETRY_INTERVAL", 0.1)
    caplog.set_level("INFO", logger="spire")
    start = home.start()
    bundle = home.folder / "bundle.pem"
    bundle.write_text(Authority(server.trust_domain).pem)
    starting = asyncio.ensure_future(attested(start))
    await until(lambda: "bootstrapping again" in caplog.text)
    assert start.storage.state.bootstrapping.use is Use.BOOTSTRAP
    bundle.write_text(server.authority.pem)
    await asyncio.wait_for(starting, PATIENCE)
    assert start.storage.state.bootstrapping == Bootstrapping(Use.REBOOTSTRAP)


async def test_each_try_is_counted_and_kept(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.startup._RETRY_INTERVAL", 0.05)
    start = home.start()
    (home.folder / "bundle.pem").unlink()
    starting = asyncio.ensure_future(attested(start))
    await until(lambda: start.storage.state.bootstrapping.attempts >= 3)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    kept = json.loads((home.folder / "agent-data.json").read_text())
    assert kept["bootstrap_use"] == 1
    assert kept["connection_attempts"] >= 3
    assert kept["bootstrap_start_time"].startswith("20")


async def test_a_known_server_is_waited_for_over_restarts(tmp_path: Path) -> None:
    clock = Clock()
    Storage.open(str(tmp_path)).store_bundle((b"root",))
    settings = Rebootstrap(Mode.AUTO, 600)
    assert await trust_of(tmp_path, settings, clock).tolerates_stranger()
    clock.now += 599
    trust = trust_of(tmp_path, settings, clock)
    assert await trust.tolerates_stranger()
    await trust.meets_stranger_at_start()
    assert Storage.open(str(tmp_path)).state.bundle == (b"root",)
    clock.now += 1
    with pytest.raises(Unwelcome, match="shutting down for rebootstrapping"):
        await trust.tolerates_stranger()
    state = Storage.open(str(tmp_path)).state
    assert (state.svid, state.bundle) == ((), ())
    assert state.bootstrapping == Bootstrapping(Use.REBOOTSTRAP, started=clock.now)


async def test_a_start_drops_the_bundle_when_it_is_time(tmp_path: Path) -> None:
    Storage.open(str(tmp_path)).store_bundle((b"root",))
    await trust_of(tmp_path, AT_ONCE, Clock()).meets_stranger_at_start()
    assert Storage.open(str(tmp_path)).state.bundle == ()


async def test_a_good_connection_begins_the_delay_anew(tmp_path: Path) -> None:
    clock = Clock()
    Storage.open(str(tmp_path)).store_bundle((b"root",))
    trust = trust_of(tmp_path, Rebootstrap(Mode.AUTO, 600), clock)
    assert await trust.tolerates_stranger()
    clock.now += 500
    await trust.confirmed()
    assert Storage.open(str(tmp_path)).state.bootstrapping.started == 0
    clock.now += 500
    assert await trust.tolerates_stranger()


async def test_never_means_never(tmp_path: Path) -> None:
    Storage.open(str(tmp_path)).store_bundle((b"root",))
    trust = trust_of(tmp_path, Rebootstrap(Mode.NEVER, 0), Clock())
    assert not await trust.tolerates_stranger()
    await trust.meets_stranger_at_start()
    assert Storage.open(str(tmp_path)).state.bundle == (b"root",)


def test_auto_gives_way_where_always_insists(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigurationError, match="cannot attest again"):
        trust_of(tmp_path, AT_ONCE, Clock()).require_reattestable(False)
    trust = trust_of(tmp_path, Rebootstrap(Mode.AUTO, 0), Clock())
    assert trust.budget == 24 * 3600
    trust.require_reattestable(False)
    assert trust.budget == 60
    assert "Rebootstrapping is off" in caplog.text


async def test_always_with_a_node_that_cannot_attest_again_does_not_start(home: Home, server: FakeServer) -> None:
    home.rebootstrap = AT_ONCE
    with pytest.raises(ConfigurationError, match="rebootstrap"):
        await attested(home.start())
    server.reattestable = True
    server.tokens.add("token")
    assert (await attested(home.start())).svid.reattestable


@asynccontextmanager
async def replaced(server: FakeServer, running: AsyncExitStack) -> AsyncGenerator[None]:
    """The same server with other keys, on the same port."""
    await running.aclose()
    server.authority = Authority(server.trust_domain)
    async with server.running():
        yield


async def test_a_running_agent_ends_and_its_next_start_takes_the_new_server(tmp_path: Path) -> None:
    server = FakeServer(reattestable=True)
    server.add_entry("a")
    keys = await DiskKeyManager.open(tmp_path / "keys.json")
    home = Home(tmp_path, server, keys, rebootstrap=Rebootstrap(Mode.AUTO, 1.0))
    running = AsyncExitStack()
    await running.enter_async_context(server.running())
    async with home.running() as agent:
        old = server.authority.der
        async with replaced(server, running):
            with pytest.raises(Unwelcome, match="rebootstrapping"):
                await asyncio.wait_for(agent.task, PATIENCE)
            assert agent.storage.state.svid == ()
    # What the lost authorities signed is not served from the store either.
    assert agent.storage.state.generation > 0
    assert not (tmp_path / NAME).exists()
    async with server.running(), home.running() as agent:
        assert agent.storage.state.bundle == (server.authority.der,)
        assert agent.storage.state.bundle != (old,)
        assert agent.storage.state.bootstrapping == Bootstrapping(Use.REBOOTSTRAP)
    await keys.close()


async def test_a_running_agent_goes_on_when_its_server_comes_back_in_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="spire")
    server = FakeServer(reattestable=True)
    server.add_entry("a")
    home = Home(tmp_path, server, rebootstrap=Rebootstrap(Mode.AUTO, 3600.0))
    running = AsyncExitStack()
    await running.enter_async_context(server.running())
    async with home.running() as agent:
        right = server.authority
        async with replaced(server, running):
            await until(lambda: "ignoring for now" in caplog.text)
        server.authority = right
        async with server.running():
            since = time.time()
            await until(lambda: agent.managing.last_sync > since)
            await until(lambda: not agent.storage.state.bootstrapping.started)
            assert not agent.task.done()


@asynccontextmanager
async def workload_api(path: str, bundles: dict[str, bytes]) -> AsyncGenerator[None]:
    async def fetch(request: object, peer: Peer, context: Context) -> AsyncGenerator[workload_pb2.X509BundlesResponse]:
        del request, peer, context
        yield workload_pb2.X509BundlesResponse(bundles=bundles)
        await asyncio.Event().wait()

    router = Router()
    router.add(workload_pb2.DESCRIPTOR.services_by_name["SpiffeWorkloadAPI"], {"FetchX509Bundles": fetch})
    server = Server(router)
    await server.listen_unix(path, mode=0o600)
    try:
        yield
    finally:
        await server.drain(0.1)


async def test_the_bundle_of_another_workload_api(tmp_path: Path) -> None:
    first, second = Authority(TD), Authority(TD)
    path = str(tmp_path / "api.sock")
    source = TrustBundleSource(TD, "h", 1, workload_api=f"unix://{path}")
    with pytest.raises(TemporarilyUnavailable, match="unable to fetch trust bundle from SPIFFE Workload API unix://"):
        await bootstrap_bundle(source, ASKING)
    async with workload_api(path, {TD.id: first.der + second.der, "spiffe://other.org": b"garbage"}):
        assert await bootstrap_bundle(source, ASKING) == (first.der, second.der)
        other = replace(source, trust_domain=TrustDomain("third.org"))
        with pytest.raises(TemporarilyUnavailable, match="did not provide a trust bundle"):
            await bootstrap_bundle(other, ASKING)
        with pytest.raises(InvalidArgument, match="could not parse"):
            await bootstrap_bundle(replace(source, trust_domain=TrustDomain("other.org")), ASKING)


async def test_the_other_workload_api_may_come_over_tcp(tmp_path: Path) -> None:
    del tmp_path
    with pytest.raises(TemporarilyUnavailable, match="connection refused"):
        await bootstrap_bundle(TrustBundleSource(TD, "h", 1, workload_api="tcp://127.0.0.1:1"), ASKING)
