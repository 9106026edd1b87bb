"""What a running agent listens on, and what is left when its APIs are switched off."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.workload_api import SECURITY_HEADER
from generated.spiffe.workload import workload_pb2
from tests.simulators import proc, spire
from transport.client import Channel
from transport.status import Code, RpcError

NODE = "spiffe://example.org/node"
MakeAgent = Callable[..., spire.Agent]


@pytest.fixture
def make_agent(tmp_path: Path, programs: list[spire.Program]) -> MakeAgent:
    """A running agent of a server of its own, with more lines of the agent block, and more blocks."""
    server = spire.Server(tmp_path / "server")
    programs.append(server.run)
    server.start()
    server.create_entry(NODE, "spiffe://example.org/workload")

    def make(settings: str = "", blocks: str = "") -> spire.Agent:
        token = server.join_token(NODE)
        agent = spire.Agent(tmp_path / "agent", server, token=token, settings=settings, blocks=blocks)
        programs.append(agent.run)
        return agent

    return make


def ports(agent: spire.Agent) -> set[int]:
    assert agent.run.process is not None
    return proc.listening_ports(agent.run.process.pid)


def health_block(port: int) -> str:
    return f'health_checks {{ listener_enabled = true  bind_address = "127.0.0.1"  bind_port = "{port}" }}'


def is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/live", timeout=spire.PATIENCE) as answer:
            return int(answer.status) == 200
    except OSError:
        return False


@pytest.mark.parametrize("admin", [False, True])
@pytest.mark.parametrize("health", [False, True])
@pytest.mark.parametrize("metrics", [False, True])
def test_no_port_is_open_but_those_of_health_and_metrics(
    make_agent: MakeAgent, tmp_path: Path, admin: bool, health: bool, metrics: bool
) -> None:
    health_port, metrics_port = spire.free_port(), spire.free_port()
    blocks = health_block(health_port) if health else ""
    if metrics:
        blocks += f'\ntelemetry {{ Prometheus {{ host = "127.0.0.1"  port = {metrics_port} }} }}'
    agent = make_agent(f'admin_socket_path = "{tmp_path}/admin/admin.sock"' if admin else "", blocks)
    agent.start()
    agent.fetch()
    if health:
        spire.eventually(lambda: is_healthy(health_port), "its health")
    expected = {port for port, wanted in ((health_port, health), (metrics_port, metrics)) if wanted}
    assert ports(agent) == expected


def test_health_stays_on_the_socket_without_the_workload_api(make_agent: MakeAgent) -> None:
    port = spire.free_port()
    agent = make_agent("disable_workload_api = true", health_block(port))
    agent.start()
    refused = agent.ask("api", "fetch", "x509", check=False)
    assert refused.returncode == 1
    assert "unknown service SpiffeWorkloadAPI" in refused.stdout + refused.stderr
    spire.eventually(lambda: is_healthy(port), "its health")
    assert ports(agent) == {port}


async def test_a_workload_that_calls_too_often_is_told(make_agent: MakeAgent) -> None:
    agent = make_agent("experimental { ratelimit { fetch_x509_svid = 5 } }")
    await asyncio.to_thread(agent.start)
    await asyncio.to_thread(agent.fetch)
    refusals: list[RpcError] = []
    async with Channel.unix(agent.socket) as channel:
        for _ in range(50):
            updates = channel.server_stream(
                "/SpiffeWorkloadAPI/FetchX509SVID",
                workload_pb2.X509SVIDRequest(),
                workload_pb2.X509SVIDResponse,
                metadata={SECURITY_HEADER: "true"},
            )
            try:
                assert (await anext(updates)).svids
            except RpcError as error:
                refusals.append(error)
    assert 0 < len(refusals) < 50
    assert {(each.code, each.message) for each in refusals} == {
        (Code.UNAVAILABLE, "rate limit exceeded for /SpiffeWorkloadAPI/FetchX509SVID")
    }
    assert await asyncio.to_thread(agent.healthy)
    # The next second brings more.
    await asyncio.to_thread(agent.fetch)


def test_there_is_no_socket_without_any_api(make_agent: MakeAgent, tmp_path: Path) -> None:
    port = spire.free_port()
    admin = tmp_path / "admin" / "admin.sock"
    agent = make_agent(f'disable_sds_api = true\n admin_socket_path = "{admin}"', health_block(port))
    agent.run.command = [*agent.run.command, "-disableWorkloadAPI"]
    agent.run.start()
    spire.eventually(lambda: is_healthy(port), "its health")
    spire.eventually(admin.exists, "the admin socket")
    assert not Path(agent.socket).exists()
    assert agent.run.end() == 0
