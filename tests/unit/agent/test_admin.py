"""The agent's admin socket, and what is counted of its calls."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent import metrics as agent_metrics
from agent.admin import serve_admin
from agent.observing import Observed
from agent.workload_attestation import WorkloadAttestation
from generated.spire.api.agent.debug.v1 import debug_pb2
from generated.spire.api.agent.logger.v1 import logger_pb2
from generated.spire.api.types import logger_pb2 as types
from identity.spiffeid import TrustDomain
from keystores.memory import MemoryKeyManager
from operations import logs
from operations.errors import NotFound, TemporarilyUnavailable
from operations.prometheus import Prometheus
from tests.simulators.house import refused
from tests.simulators.in_process_agent import RunningAgent, until
from transport.client import Channel
from transport.status import Code

LOGGER = "/spire.api.agent.logger.v1.Logger/"
GET_INFO = "/spire.agent.debug.v1.Debug/GetInfo"


@pytest.fixture
async def admin(agent: RunningAgent, tmp_path: Path) -> AsyncIterator[Channel]:
    path = str(tmp_path / "admin.sock")
    server = await serve_admin(path, agent.managing, WorkloadAttestation([agent.attestor]))
    async with Channel.unix(path) as channel:
        yield channel
    await server.drain(0)


async def test_what_the_agent_is(admin: Channel, agent: RunningAgent) -> None:
    await until(lambda: agent.managing.cache.svid_count)
    info = await admin.unary(GET_INFO, debug_pb2.GetInfoRequest(), debug_pb2.GetInfoResponse)
    assert (info.cached_x509_svids_count, info.cached_jwt_svids_count) == (1, 0)
    assert info.last_sync_success == int(agent.managing.last_sync) > 0
    assert info.svid_chain[0].id.path.startswith("/spire/agent/")
    assert len(info.svid_chain) == 2


async def test_the_level_changes_while_running(admin: Channel) -> None:
    logs.setup("warn", "text")
    request = logger_pb2.SetLogLevelRequest(new_level=types.DEBUG)
    assert await admin.unary(LOGGER + "SetLogLevel", request, types.Logger) == types.Logger(
        current_level=types.DEBUG, launch_level=types.WARN
    )
    assert logs.level() == "debug"
    reset = await admin.unary(LOGGER + "ResetLogLevel", logger_pb2.ResetLogLevelRequest(), types.Logger)
    got = await admin.unary(LOGGER + "GetLogger", logger_pb2.GetLoggerRequest(), types.Logger)
    assert reset == got == types.Logger(current_level=types.WARN, launch_level=types.WARN)
    error = await refused(admin, LOGGER + "SetLogLevel", logger_pb2.SetLogLevelRequest())
    assert error.code is Code.INVALID_ARGUMENT


async def test_workloads_have_none_of_it(agent: RunningAgent) -> None:
    for path, request in (
        (GET_INFO, debug_pb2.GetInfoRequest()),
        (LOGGER + "GetLogger", logger_pb2.GetLoggerRequest()),
    ):
        assert (await refused(agent.channel, path, request)).code is Code.UNIMPLEMENTED


async def test_calls_and_synchronisations_are_counted(sink: Prometheus, admin: Channel, agent: RunningAgent) -> None:
    await until(lambda: agent.managing.cache.svid_count and "spire_agent_sync_entries_total 1\n" in sink.text())
    await admin.unary(GET_INFO, debug_pb2.GetInfoRequest(), debug_pb2.GetInfoResponse)
    lines = sink.text().splitlines()
    assert "spire_agent_debug_api_connection 1" in lines
    assert "spire_agent_debug_api_connections 0" in lines
    assert 'spire_agent_manager_sync_fetch_svids_updates{status="OK"} 1' in lines
    assert 'spire_agent_node_attestor_new_svid{status="OK"} 1' in lines
    assert 'spire_agent_bootstrap_attempts{mode="bootstrap"} 1' in lines
    assert "spire_agent_bootstrapped 1" in lines
    assert 'spire_agent_lru_cache_record_map_size{svid_type="X509"} 1' in lines
    assert not any("rpc_debug_get_info" in line for line in lines), "the agent's own calls do not count as others'"


async def test_the_key_manager_is_timed(sink: Prometheus) -> None:
    keys = MemoryKeyManager()
    agent_metrics.time_key_manager(keys)
    await keys.list()
    assert 'spire_agent_agent_key_manager_get_keys{status="OK"} 1' in sink.text()


async def test_health_from_the_start_on(agent: RunningAgent, tmp_path: Path) -> None:
    watched = Observed(str(tmp_path / "api.sock"))
    state = await watched.check()
    assert (state.started, state.live, state.ready) == (False, True, False)
    assert state.ready_details == {"make_new_x509_err": "workload api is unavailable"}
    watched.serves()
    state = await watched.check()
    assert (state.live, state.ready, state.live_details, state.ready_details) == (True, True, {}, {})
    gone = Observed(str(tmp_path / "gone.sock"))
    gone.serves()
    state = await gone.check()
    assert (state.live, state.ready) == (False, False)


async def test_the_agents_svid_serves_scrapes(agent: RunningAgent, tmp_path: Path) -> None:
    watched = Observed(str(tmp_path / "api.sock"))
    own = agent.managing.cache.bundle.trust_domain
    with pytest.raises(TemporarilyUnavailable):
        watched.identity()
    with pytest.raises(NotFound):
        await watched.authorities(own)
    watched.manager = agent.managing
    identity = watched.identity()
    assert identity.chain == agent.managing.svid.chain
    assert watched.identity() is identity
    assert await watched.authorities(own)
    with pytest.raises(NotFound):
        await watched.authorities(TrustDomain("other.org"))
