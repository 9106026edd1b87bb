"""The agent as a process, on our server or, when SPIRE_SERVER_BIN names one, on another."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import stat
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from cryptography import x509

from agent.workload_api import SECURITY_HEADER
from generated.spiffe.workload import workload_pb2
from tests.simulators import spire
from transport.client import Channel
from transport.status import Code, RpcError

SERVER = os.environ.get("SPIRE_SERVER_BIN") or spire.SERVER
NODE = "spiffe://example.org/node"
WORKLOAD = "spiffe://example.org/workload"
PATIENCE = spire.PATIENCE

MakeServer = Callable[[str], spire.Server]
MakeAgent = Callable[..., spire.Agent]


@pytest.fixture
def ended() -> Iterator[list[spire.Program]]:
    """Programs that end with the test."""
    running: list[spire.Program] = []
    yield running
    for program in reversed(running):
        if program.process is not None:
            program.end()


@pytest.fixture
def make_server(tmp_path: Path, ended: list[spire.Program]) -> MakeServer:
    def make(settings: str = "") -> spire.Server:
        server = spire.Server(tmp_path / "server", settings=settings, program=SERVER)
        ended.append(server.run)
        server.start()
        return server

    return make


@pytest.fixture
def make_agent(tmp_path: Path, ended: list[spire.Program]) -> MakeAgent:
    def make(server: spire.Server, settings: str = "") -> spire.Agent:
        agent = spire.Agent(tmp_path / "agent", server, token=server.join_token(NODE), settings=settings)
        ended.append(agent.run)
        return agent

    return make


async def svids(path: str, *, at_most: float) -> list[x509.Certificate]:
    """What a workload is given on one stream within a time."""
    found: list[x509.Certificate] = []
    channel = Channel.unix(path)
    stream = channel.server_stream(
        "/SpiffeWorkloadAPI/FetchX509SVID",
        workload_pb2.X509SVIDRequest(),
        workload_pb2.X509SVIDResponse,
        timeout=at_most,
        metadata={SECURITY_HEADER: "true"},
    )
    try:
        async for response in stream:
            found.append(x509.load_der_x509_certificate(response.svids[0].x509_svid))
            assert found[-1].not_valid_after_utc.timestamp() > time.time()
    except RpcError as error:
        if error.code is not Code.DEADLINE_EXCEEDED:
            raise
    finally:
        await channel.close()
    return found


async def test_rotations_leave_no_gap(make_server: MakeServer, make_agent: MakeAgent) -> None:
    server = await asyncio.to_thread(make_server, 'agent_ttl = "8s"\n default_x509_svid_ttl = "6s"')
    agent = await asyncio.to_thread(make_agent, server)
    await asyncio.to_thread(agent.start)
    await asyncio.to_thread(server.create_entry, NODE, WORKLOAD)
    await asyncio.to_thread(agent.fetch)
    end = time.monotonic() + 20
    streamed = asyncio.ensure_future(svids(agent.socket, at_most=20))
    asked = 0
    while time.monotonic() < end - 1:
        # A workload that comes in the midst of it gets what is in force, at once.
        assert await svids(agent.socket, at_most=0.5)
        asked += 1
    assert asked
    found = await streamed
    assert len({each.serial_number for each in found}) >= 4
    for before, after in pairwise(found):
        assert after.not_valid_before_utc < before.not_valid_after_utc
    log = agent.run.output()
    assert log.count("Successfully rotated agent SVID") >= 2
    assert "level=error" not in re.sub(r'.*msg="No identity issued".*', "", log)
    # What it rotated to is what it goes on with.
    assert await asyncio.to_thread(agent.run.end) == 0
    await asyncio.to_thread(agent.start)
    assert WORKLOAD in await asyncio.to_thread(agent.fetch)


def test_the_socket_is_open_to_all_in_a_folder_of_its_own(make_server: MakeServer, make_agent: MakeAgent) -> None:
    agent = make_agent(make_server(""))
    agent.socket = str(agent.folder / "deep" / "public" / "api.sock")
    agent.config.write_text(re.sub(r'socket_path = ".*"', f'socket_path = "{agent.socket}"', agent.config.read_text()))
    agent.start()
    assert stat.S_IMODE(Path(agent.socket).stat().st_mode) == 0o777
    assert agent.run.end() == 0
    assert not Path(agent.socket).exists()


def test_an_evicted_agent_ends(make_server: MakeServer, make_agent: MakeAgent) -> None:
    server = make_server("")
    agent = make_agent(server)
    agent.start()
    listed = server.ask("agent", "list").stdout
    server.ask("agent", "evict", "-spiffeID", next(word for word in listed.split() if "/spire/agent/" in word))
    assert agent.run.wait() == 1
    assert "attestation method is not re-attestable" in agent.run.output()
    assert "Traceback" not in agent.run.output()


def test_it_can_be_ended_while_it_waits_for_its_server(make_server: MakeServer, make_agent: MakeAgent) -> None:
    server = make_server("")
    agent = make_agent(server)
    server.run.end()
    agent.run.start()
    spire.eventually(lambda: "Failed to retrieve attestation result" in agent.run.output(), "a failed attempt")
    assert agent.run.end(signal.SIGTERM) == 0


def test_damaged_state_is_named_and_left_alone(make_server: MakeServer, make_agent: MakeAgent) -> None:
    agent = make_agent(make_server(""))
    state = agent.folder / "agent-data.json"
    state.write_text('{"svid": ')
    agent.run.start()
    assert agent.run.wait() == 1
    assert str(state) in agent.run.output()
    assert "Traceback" not in agent.run.output()
    assert state.read_text() == '{"svid": '


def test_two_agents_do_not_share_a_socket(make_server: MakeServer, make_agent: MakeAgent, tmp_path: Path) -> None:
    server = make_server("")
    first = make_agent(server)
    first.start()
    second = spire.Agent(tmp_path / "second", server, token=server.join_token())
    second.config.write_text(second.config.read_text().replace(second.socket, first.socket))
    second.run.start()
    try:
        assert second.run.wait() == 1
        assert f"another process is listening on {first.socket}" in second.run.output()
        assert first.healthy()
    finally:
        second.run.end()
