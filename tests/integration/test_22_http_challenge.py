"""Agents that attest by what their host tells over HTTP: once, and not by another's host."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.simulators import spire
from tests.simulators.ports import free_port
from tests.simulators.spire import Agent, Program, Server, command, eventually
from tests.simulators.web_hosts import WebHost

WORKLOAD = "spiffe://example.org/workload"
HOST = "127.0.0.1"
NODE = f"spiffe://example.org/spire/agent/http_challenge/{HOST}"


@dataclass
class Site:
    folder: Path
    programs: list[Program] = field(default_factory=list[Program])

    def server(self, data: str = "", settings: str = "") -> Server:
        block = f'NodeAttestor "http_challenge" {{ plugin_data {{ {data} }} }}'
        made = Server(self.folder / "server", settings=settings, node_attestor=block)
        self.programs.append(made.run)
        return made

    def agent(self, server: Server, name: str = "agent", **more: str | int) -> Agent:
        data = "\n".join(f"{key} = {json.dumps(value)}" for key, value in {"hostname": HOST, **more}.items())
        block = f'NodeAttestor "http_challenge" {{ plugin_data {{ {data} }} }}'
        made = Agent(self.folder / name, server, node_attestor=block)
        self.programs.append(made.run)
        return made


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    for program in reversed(made.programs):
        if program.process is not None:
            program.end()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def test_an_agent_its_workloads_and_the_next_who_comes(site: Site) -> None:
    server = site.server()
    server.start()
    port = free_port()
    agent = site.agent(server, port=port)
    agent.start()
    assert not listens(port), "the port is there while the agent attests, and no longer"
    server.create_entry(
        "spiffe://example.org/spire/server", "spiffe://example.org/rack", selectors=[f"http_challenge:hostname:{HOST}"]
    )
    server.create_entry("spiffe://example.org/rack", WORKLOAD)
    assert WORKLOAD in agent.fetch()

    second = site.agent(server, "second", port=port)
    second.run.start()
    assert second.run.wait() == 1
    words = "nodeattestor(http_challenge): attestation data has already been used to attest an agent"
    assert words in second.run.output()
    assert "Attestation data has already been used to attest an agent" in server.run.output()
    assert not listens(port)
    server.ask("agent", "evict", "-spiffeID", NODE)
    second.start()
    assert NODE in server.ask("agent", "list").stdout


def test_an_agent_renews_without_being_asked_again(site: Site) -> None:
    """What counts once cannot be shown at each renewal: the agent's own SVID is what it renews by."""
    server = site.server(settings='agent_ttl = "20s"')
    server.start()
    agent = site.agent(server)
    agent.start()
    eventually(lambda: "Successfully rotated agent SVID" in agent.run.output(), "a renewal")
    assert agent.healthy()


def test_a_port_that_is_taken_is_waited_for(site: Site) -> None:
    server = site.server()
    server.start()
    with WebHost() as other:
        agent = site.agent(server, port=other.port)
        agent.run.start()
        eventually(lambda: f"could not listen on port {other.port}: " in agent.run.output(), "a line")
    eventually(agent.healthy, "the port")


def test_hosts_that_are_refused(site: Site) -> None:
    server = site.server('allowed_dns_patterns = ["^127[.]0"]')
    server.start()
    with WebHost() as other:
        for name, more, words in (
            ("outside", {"hostname": "127.1.0.1"}, "the requested hostname is not allowed to connect"),
            ("wrong", {"advertised_port": other.port}, "expected nonce was not found in HTTP response"),
            ("nobody", {"advertised_port": free_port()}, "challenge verification failed: cannot reach"),
        ):
            agent = site.agent(server, name, **more)
            agent.run.start()
            assert agent.run.wait() == 1
            assert words in agent.run.output()
            assert "Traceback" not in agent.run.output()
    assert "No attested agents found" in server.ask("agent", "list").stdout
    assert "Traceback" not in server.run.output()


def test_settings_that_cannot_be_used(site: Site) -> None:
    server = site.server("tofu = false")
    refused = command(spire.SERVER, "validate", "-config", str(server.config))
    assert refused.returncode == 1
    assert "you can not turn off trust on first use (TOFU) when non-root ports are allowed" in refused.stderr
