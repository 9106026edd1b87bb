"""Agents whose SVID has run out, because they or their machine slept, and agents that the server forgot.

SPIRE_SERVER_BIN and SPIRE_AGENT_BIN put other halves in the place of ours.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_08_x509pop import AGENT, NAMED, SERVER, WORKLOAD, Site
from tests.simulators import spire
from tests.simulators.nodes import root
from tests.simulators.spire import Agent, Server, eventually

TTL = 12
SETTINGS = f'agent_ttl = "{TTL}s"\n  default_x509_svid_ttl = "{TTL}s"'
NODE = "spiffe://example.org/node"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path, root(), [])
    yield made
    for program in reversed(made.programs):
        if program.process is not None:
            program.end(signal.SIGKILL)


def sleep(seconds: float) -> None:
    threading.Event().wait(seconds)


def slept(agent: Agent) -> None:
    """As when the machine was suspended: the process knows nothing of the time in between."""
    assert agent.run.process is not None
    os.kill(agent.run.process.pid, signal.SIGSTOP)
    sleep(TTL + 3)
    os.kill(agent.run.process.pid, signal.SIGCONT)


def with_token(site: Site) -> tuple[Server, Agent]:
    keys = f'KeyManager "disk" {{ plugin_data {{ keys_path = "{site.folder}/keys.json" }} }}'
    server = Server(site.folder / "server", keys, SETTINGS, program=SERVER)
    site.programs.append(server.run)
    server.start()
    agent = Agent(site.folder / "agent", server, token=server.join_token(NODE), program=AGENT)
    site.programs.append(agent.run)
    agent.start()
    server.create_entry(NODE, WORKLOAD)
    agent.fetch()
    return server, agent


def with_certificate(site: Site, settings: str = SETTINGS) -> tuple[Server, Agent]:
    server = site.server(settings)
    agent = site.agent(server)
    agent.start()
    server.create_entry(NAMED, WORKLOAD)
    agent.fetch()
    return server, agent


@pytest.mark.timeout(300)
def test_a_machine_that_slept_attests_anew(site: Site) -> None:
    server, agent = with_certificate(site)
    slept(agent)
    done = agent.run.output().count("Successfully reattested node")

    def again() -> bool:
        # The agent may end on the way, as SPIRE's does, and a supervisor starts it anew.
        if not agent.run.running:
            agent.run.start()
        words = ("Successfully reattested node", "Node attestation was successful")
        return sum(agent.run.output().count(each) for each in words) > done + 1

    eventually(again, "an attestation")
    assert WORKLOAD in agent.fetch()
    assert len(server.ask_json("agent", "list")["agents"]) == 1


@pytest.mark.timeout(300)
def test_one_that_cannot_attest_again_ends(site: Site) -> None:
    _, agent = with_token(site)
    slept(agent)
    assert agent.run.wait() == 1
    assert "Traceback" not in agent.run.output()


@pytest.mark.timeout(300)
def test_an_agent_that_was_off_for_longer_than_its_svid_attests_at_its_start(site: Site) -> None:
    _, agent = with_certificate(site)
    agent.run.end()
    sleep(TTL + 2)
    agent.start()
    assert "SVID key recovered, but SVID is expired. Generating new keypair" in agent.run.output()
    assert WORKLOAD in agent.fetch()


@pytest.mark.timeout(300)
def test_one_with_a_spent_token_ends_after_a_minute_of_tries(site: Site) -> None:
    _, agent = with_token(site)
    agent.run.end()
    sleep(TTL + 2)
    agent.run.start()
    assert agent.run.wait(spire.PATIENCE * 3) == 1
    assert agent.run.output().count("Failed to retrieve attestation result") >= 2


@pytest.mark.timeout(300)
def test_an_evicted_agent_attests_anew_without_an_end(site: Site) -> None:
    server, agent = with_certificate(site, settings="")
    server.ask("agent", "evict", "-spiffeID", NAMED)
    eventually(lambda: "will attempt to re-attest" in agent.run.output(), "a refusal", 120)
    eventually(lambda: bool(server.ask_json("agent", "list")["agents"]), "the agent on the list")
    assert agent.run.running
    assert WORKLOAD in agent.fetch()


@pytest.mark.timeout(300)
def test_a_banned_agent_ends_and_may_not_come_back(site: Site) -> None:
    server, agent = with_certificate(site)
    server.ask("agent", "ban", "-spiffeID", NAMED)
    assert agent.run.wait() == 1
    agent.run.start()
    assert agent.run.wait() == 1
    assert "Traceback" not in agent.run.output()
