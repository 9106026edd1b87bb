"""Agents that attest with a certificate: at their start, at every renewal, and when the server wants it again.

SPIRE_SERVER_BIN and SPIRE_AGENT_BIN put other halves in the place of ours.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from attestors.x509pop import verifier
from tests.simulators import spire
from tests.simulators.nodes import DAY, Authority, Shape, root
from tests.simulators.spire import Agent, Program, Server, command, eventually

SERVER = os.environ.get("SPIRE_SERVER_BIN") or spire.SERVER
AGENT = os.environ.get("SPIRE_AGENT_BIN") or spire.AGENT
WORKLOAD = "spiffe://example.org/workload"
BY_NAME = "/x509pop/{{ .Subject.CommonName }}"
NAMED = "spiffe://example.org/spire/agent/x509pop/node-1.example.org"


@dataclass
class Site:
    """A server, the CA of its nodes, and agents with certificates of that CA."""

    folder: Path
    ca: Authority
    programs: list[Program]

    def server(self, settings: str = "", attestor: str = "") -> Server:
        bundle = self.folder / "ca.pem"
        bundle.write_bytes(self.ca.pem)
        data = attestor or f'ca_bundle_path = "{bundle}"\n agent_path_template = "{BY_NAME}"'
        block = f'NodeAttestor "x509pop" {{ plugin_data {{ {data} }} }}'
        keys = f'KeyManager "disk" {{ plugin_data {{ keys_path = "{self.folder}/keys.json" }} }}'
        made = Server(self.folder / "server", keys, settings, program=SERVER, node_attestor=block)
        self.programs.append(made.run)
        made.start()
        return made

    def agent(self, server: Server, name: str = "agent", attestor: str = "", program: str = AGENT) -> Agent:
        folder = self.folder / name
        folder.mkdir()
        certificate, key = folder / "node.crt.pem", folder / "node.key.pem"
        data = attestor or f'certificate_path = "{certificate}"\n private_key_path = "{key}"'
        block = f'NodeAttestor "x509pop" {{ plugin_data {{ {data} }} }}'
        self.ca.node().write(folder, "node")
        made = Agent(folder, server, program=program, node_attestor=block)
        self.programs.append(made.run)
        return made


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path, root(), [])
    yield made
    for program in reversed(made.programs):
        if program.process is not None:
            program.end()


def listed(server: Server) -> str:
    return server.ask("agent", "list").stdout


def said(agent: Agent, words: str, times: int = 1) -> Callable[[], bool]:
    return lambda: agent.run.output().count(words) >= times


def test_an_agent_and_its_workloads(site: Site) -> None:
    """Selectors of the node give it a node alias, and that one's entries."""
    server = site.server("experimental { agent_spiffe_id_as_selector = true }")
    alias = "spiffe://example.org/rack-7"
    server.create_entry("spiffe://example.org/spire/server", alias, selectors=["x509pop:subject:cn:node-1.example.org"])
    server.create_entry(alias, WORKLOAD)
    agent = site.agent(server)
    agent.start()
    assert WORKLOAD in agent.fetch()
    shown = server.ask("agent", "show", "-spiffeID", NAMED).stdout
    for selector in (
        f"spiffe_id:{NAMED}",
        f"x509pop:ca:fingerprint:{verifier.fingerprint(site.ca.certificate)}",
        "x509pop:subject:cn:node-1.example.org",
    ):
        assert selector in shown
    assert "Can re-attest     : true" in shown


def test_renewals_attest_anew_with_the_files_of_the_day(site: Site) -> None:
    server = site.server('agent_ttl = "20s"')
    agent = site.agent(server)
    agent.start()
    first = site.ca.node(Shape(serial=0xABCDEF))
    first.write(agent.folder, "node")
    eventually(
        lambda: "x509pop:serialnumber:abcdef" in server.ask("agent", "show", "-spiffeID", NAMED).stdout,
        "the new certificate",
    )
    # A file that is wrong for a moment costs a try, no more.
    (agent.folder / "node.crt.pem").write_bytes(b"")
    eventually(said(agent, "unable to load keypair"), "a failed try")
    site.ca.node(Shape(serial=0xABCDEE)).write(agent.folder, "node")
    eventually(
        lambda: "x509pop:serialnumber:abcdee" in server.ask("agent", "show", "-spiffeID", NAMED).stdout,
        "the newest certificate",
    )
    assert agent.healthy()


def test_an_evicted_agent_attests_again(site: Site) -> None:
    server = site.server()
    agent = site.agent(server)
    agent.start()
    server.create_entry(NAMED, WORKLOAD)
    assert WORKLOAD in agent.fetch()
    server.ask("agent", "evict", "-spiffeID", NAMED)
    eventually(said(agent, "Successfully reattested node"), "another attestation")
    eventually(lambda: NAMED in listed(server), "the agent")
    assert WORKLOAD in agent.fetch()
    assert agent.run.running


def test_a_banned_agent_ends_and_comes_back_when_it_is_evicted(site: Site) -> None:
    server = site.server()
    agent = site.agent(server)
    agent.start()
    server.ask("agent", "ban", "-spiffeID", NAMED)
    assert agent.run.wait() == 1
    assert "Agent is banned: removing SVID and shutting down" in agent.run.output()
    agent.run.start()
    assert agent.run.wait() == 1
    assert "failed to attest: agent is banned" in agent.run.output()
    server.ask("agent", "evict", "-spiffeID", NAMED)
    agent.start()
    assert NAMED in listed(server)


def test_an_svid_that_ran_out_while_the_agent_was_down(site: Site) -> None:
    server = site.server('agent_ttl = "3s"')
    agent = site.agent(server)
    agent.start()
    assert agent.run.end() == 0
    time.sleep(4)
    agent.start()
    assert "SVID key recovered, but SVID is expired" in agent.run.output()


def test_a_server_that_is_away_for_longer_than_an_svid_lasts(site: Site) -> None:
    """SPIRE's agent ends then, to be started again; ours goes on and attests when the server is back."""
    server = site.server('agent_ttl = "4s"')
    agent = site.agent(server)
    agent.start()
    server.run.end()
    eventually(said(agent, "current SVID has already expired and reattest agent failed"), "its end")
    server.start()
    if AGENT != spire.AGENT:
        assert agent.run.wait() == 1
        agent.start()
    server.create_entry(NAMED, WORKLOAD)
    assert WORKLOAD in agent.fetch()


def test_an_agent_that_the_server_forgot_while_it_was_down(site: Site) -> None:
    server = site.server()
    agent = site.agent(server)
    agent.start()
    assert agent.run.end() == 0
    server.ask("agent", "evict", "-spiffeID", NAMED)
    agent.run.start()
    assert agent.run.wait() == 1
    assert "Agent needs to re-attest: removing SVID and shutting down" in agent.run.output()
    agent.start()
    assert NAMED in listed(server)


def test_a_certificate_that_is_not_trusted(site: Site) -> None:
    server = site.server()
    for number, (shape, words) in enumerate(
        (
            (Shape(begins=-2 * DAY, ends=-DAY), "certificate has expired or is not yet valid"),
            (None, "certificate signed by unknown authority"),
        )
    ):
        agent = site.agent(server, f"agent-{number}")
        (site.ca.node(shape) if shape else root("root").node()).write(agent.folder, "node")
        agent.run.start()
        assert agent.run.wait() == 1
        assert f"nodeattestor(x509pop): certificate verification failed: x509: {words}" in agent.run.output()
        assert "Traceback" not in agent.run.output()
    assert "No attested agents found" in listed(server)


def test_an_agent_that_attests_by_the_svid_of_another(site: Site) -> None:
    """Mode spiffe: the first agent's Workload API gives the second one its certificate."""
    server = site.server(attestor='mode = "spiffe"')
    first = Agent(site.folder / "first", server, token=server.join_token("spiffe://example.org/host"), program=AGENT)
    site.programs.append(first.run)
    first.start()
    server.create_entry("spiffe://example.org/host", "spiffe://example.org/spire-exchange/inner")
    assert "spire-exchange/inner" in first.fetch()
    second = site.agent(server, "second", f'spiffe_endpoint_socket = "{first.address}"')
    second.start()
    assert "spiffe://example.org/spire/agent/x509pop/inner" in listed(server)


@pytest.mark.parametrize(
    ("attestor", "words"),
    [
        ('certificate_path = "/nonexistent/crt"\n private_key_path = "k"', ("agent.conf:", "/nonexistent/crt")),
        ('certificate_path = "a"', ("agent.conf:", "private_key_path is required")),
        ('certificat_path = "a"', ("agent.conf:", "certificat_path", "certificate_path")),
    ],
)
def test_agent_settings_that_cannot_be_used(site: Site, attestor: str, words: tuple[str, ...]) -> None:
    agent = site.agent(site.server(), attestor=attestor, program=spire.AGENT)
    agent.run.start()
    assert agent.run.wait() == 1
    for word in words:
        assert word in agent.run.output()
    assert "Traceback" not in agent.run.output()


def test_a_template_that_cannot_work_is_refused_at_the_start(site: Site) -> None:
    server = Server(
        site.folder / "server",
        node_attestor=f'NodeAttestor "x509pop" {{ plugin_data {{ ca_bundle_path = "{site.folder}/ca.pem"\n'
        'agent_path_template = "/{{ env `HOME` }}" } }',
    )
    (site.folder / "ca.pem").write_bytes(site.ca.pem)
    server.run.start()
    assert server.run.wait() == 1
    for word in ("server.conf:", "agent_path_template", 'function "env" not defined'):
        assert word in server.run.output().replace('\\"', '"')
    assert spire.command(spire.SERVER, "validate", "-config", str(server.config)).returncode != 0


def test_validate_reads_the_files_with_cas(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    server = Server(
        tmp_path / "server",
        node_attestor=f'NodeAttestor "x509pop" {{ plugin_data {{ ca_bundle_path = "{bundle}" }} }}',
    )
    refused = command(server.program, "validate", "-config", str(server.config))
    assert refused.returncode == 1
    assert f'unable to load trust bundle "{bundle}": No such file or directory' in refused.stderr
    bundle.write_bytes(root().pem)
    assert command(server.program, "validate", "-config", str(server.config)).returncode == 0
