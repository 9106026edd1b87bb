"""The server is gone, and agents are restarted, killed, or have a full disk: workloads keep what is in force."""

from __future__ import annotations

import random
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.simulators import spire
from tests.simulators.spire import Agent, Server, eventually

NODE = "spiffe://example.org/node"
WORKLOAD = "spiffe://example.org/workload"
STORE = "agent-store.sealed"
SYNC = 'experimental { sync_interval = "1s" }'

Start = Callable[..., tuple[Server, Agent]]


@pytest.fixture
def ended() -> Iterator[list[spire.Program]]:
    running: list[spire.Program] = []
    yield running
    for program in reversed(running):
        if program.process is not None:
            program.end()


@pytest.fixture
def started(tmp_path: Path, ended: list[spire.Program]) -> Start:
    """A server with keys that last, and an agent of it whose workload has its SVID, and it in its store."""

    def start(program: str = spire.AGENT, data: Path | None = None) -> tuple[Server, Agent]:
        keys = f'KeyManager "disk" {{ plugin_data {{ keys_path = "{tmp_path}/keys.json" }} }}'
        server = Server(tmp_path / "server", keys)
        ended.append(server.run)
        server.start()
        agent = Agent(tmp_path / "agent", server, token=server.join_token(NODE), settings=SYNC, program=program)
        if data is not None:
            text = re.sub(r'(data_dir|directory) = ".*?"', rf'\1 = "{data}"', agent.config.read_text())
            agent.config.write_text(text)
        ended.append(agent.run)
        agent.start()
        server.create_entry(NODE, WORKLOAD)
        agent.fetch()
        return server, agent

    return start


def identity(agent: Agent) -> str:
    """What does not change from one answer to the next."""
    lines = agent.ask("api", "fetch", "x509").stdout.splitlines()
    return "\n".join(line for line in lines if line and "Received" not in line)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_a_restarted_agent_serves_while_its_server_is_away(started: Start, number: int) -> None:
    server, agent = started()
    token = agent.ask("api", "fetch", "jwt", "-audience", "billing").stdout
    before = identity(agent)
    if number == signal.SIGKILL:
        # What was written last may be from before the token, so there has to be something new to be written.
        since = time.time_ns()
        server.create_entry(NODE, "spiffe://example.org/nobody", selectors=["unix:uid:4294967294"])
        store = agent.folder / STORE
        eventually(lambda: store.exists() and store.stat().st_mtime_ns > since, "the store with the token")
    server.run.end(signal.SIGKILL)
    agent.run.end(number)
    agent.start()
    assert identity(agent) == before
    assert agent.ask("api", "fetch", "jwt", "-audience", "billing").stdout == token
    minted = token.splitlines()[1].strip()
    assert "SVID is valid" in agent.ask("api", "validate", "jwt", "-audience", "billing", "-svid", minted).stdout
    assert agent.healthy()
    log = agent.run.output()
    assert "Serving what was kept from the last run" in log
    assert "PRIVATE KEY" not in log
    server.start()
    server.create_entry(NODE, "spiffe://example.org/later")
    eventually(lambda: "spiffe://example.org/later" in agent.ask("api", "fetch", "x509").stdout, "the later entry")
    assert len(server.ask_json("agent", "list")["agents"]) == 1


@pytest.mark.timeout(600)
def test_kills_at_any_moment_lose_nothing(started: Start) -> None:
    """With the server there, so that the store is written, and without it."""
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    server, agent = started()
    # A store may be there before the workload's SVID is in it; at its end the agent puts in what it has.
    agent.run.end()
    agent.start()
    before = identity(agent)
    for number in range(4):
        threading.Event().wait(chance.random() * 4)
        agent.run.end(signal.SIGKILL)
        if number == 1:
            server.run.end(signal.SIGKILL)
        agent.start()
        assert identity(agent) == before
    assert not list(agent.folder.glob("agent-store.refused"))


@contextmanager
def ending(process: subprocess.Popen[str]) -> Generator[None]:
    try:
        yield
    finally:
        process.kill()


@pytest.mark.timeout(300)
def test_a_disk_without_room(tmp_path: Path, started: Start) -> None:
    """A tiny file system of the agent's own: full while the entries grow, and while the server is away."""
    data = tmp_path / "data"
    data.mkdir()
    script = tmp_path / "spire-agent"
    # The mount outlasts the agent's process: a namespace lives as long as the keeper does.
    holding = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs -o size=128k tiny {data} && echo ready && exec sleep 600"],
        stdout=subprocess.PIPE,
        text=True,
    )
    with holding as keeper, ending(keeper):
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == "ready\n"
        inside = ["nsenter", "--mount", f"--target={keeper.pid}", "--"]
        script.write_text(f'#!/bin/sh\nexec {" ".join(inside)} {spire.AGENT} "$@"\n')
        script.chmod(0o755)
        server, agent = started(str(script), data)
        seen = f"{data}/{STORE}"
        eventually(lambda: subprocess.run([*inside, "test", "-e", seen], check=False).returncode == 0, "the store")
        subprocess.run([*inside, "sh", "-c", f"cat /dev/zero > {data}/filler || true"], check=False)
        for each in range(60):
            server.create_entry(NODE, f"spiffe://example.org/{each}")
        eventually(lambda: "/59" in agent.ask("api", "fetch", "x509").stdout, "all entries")
        eventually(lambda: "Could not keep the SVIDs for outages" in agent.run.output(), "a line on the disk")
        server.run.end(signal.SIGKILL)
        agent.run.end(signal.SIGKILL)
        agent.start()
        assert WORKLOAD in agent.ask("api", "fetch", "x509").stdout
        assert agent.run.output().count("Could not keep the SVIDs for outages") == 1
        agent.run.end()


@pytest.mark.timeout(300)
def test_systemd_is_told_what_the_agent_serves_from(tmp_path: Path, started: Start) -> None:
    server, agent = started()
    agent.run.end()
    server.run.end()
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(path))
        supervisor.settimeout(spire.PATIENCE)
        agent.run.environment["NOTIFY_SOCKET"] = str(path)
        agent.run.start()
        said: list[str] = []

        def hear(words: str) -> None:
            while not (said and words in said[-1]):
                said.append(supervisor.recv(4096).decode())

        hear("READY=1")
        assert "from what was kept before the restart; the server is away" in said[-1]
        server.start()
        said.clear()
        hear("STATUS=Serving the Workload API as spiffe://example.org/spire/agent/join_token/")
        assert "away" not in said[-1]


@pytest.mark.timeout(300)
def test_with_keys_in_memory_nothing_is_kept(tmp_path: Path, ended: list[spire.Program]) -> None:
    server = Server(tmp_path / "server")
    ended.append(server.run)
    server.start()
    agent = Agent(tmp_path / "agent", server, token=server.join_token(NODE), key_manager=spire.MEMORY)
    ended.append(agent.run)
    agent.start()
    server.create_entry(NODE, WORKLOAD)
    agent.fetch()
    assert agent.run.end() == 0
    assert agent.run.output().count("The key manager cannot seal what is stored") == 1
    assert not (agent.folder / STORE).exists()
