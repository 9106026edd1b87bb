"""Agents that attest with an SSH host certificate: at their start, at every renewal, and what stops them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.simulators import spire, ssh_hosts
from tests.simulators.spire import Agent, Program, Server, command, eventually
from tests.simulators.ssh_hosts import SshKey

WORKLOAD = "spiffe://example.org/workload"
NODE = "spiffe://example.org/spire/agent/sshpop/node-1"


@dataclass
class Site:
    """A CA, a host of it, a server that trusts it, and the host's agent."""

    folder: Path
    programs: list[Program] = field(default_factory=list[Program])

    def __post_init__(self) -> None:
        self.ca = ssh_hosts.make_key(self.folder / "ca", "ecdsa-256")
        self.host = ssh_hosts.make_key(self.folder / "ssh_host_rsa_key", "rsa-2048")
        self.authorities = self.folder / "authorities"
        self.authorities.write_text(f"# CAs of hosts\n{self.ca.public}")

    def server(self, settings: str = "") -> Server:
        data = f'''cert_authorities_path = "{self.authorities}"
        canonical_domain = "example.org"
        agent_path_template = "/sshpop/{{{{ .Hostname }}}}"'''
        block = f'NodeAttestor "sshpop" {{ plugin_data {{ {data} }} }}'
        keys = f'KeyManager "disk" {{ plugin_data {{ keys_path = "{self.folder}/keys.json" }} }}'
        made = Server(self.folder / "server", keys, settings, node_attestor=block)
        self.programs.append(made.run)
        return made

    def agent(self, server: Server) -> Agent:
        made = Agent(self.folder / "agent", server, node_attestor=self.host.plugin())
        self.programs.append(made.run)
        return made

    def certify(self, *options: str, principals: str = "node-1.example.org", ca: SshKey | None = None) -> None:
        ssh_hosts.certify(ca or self.ca, self.host, *options, principals=principals)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    made.certify()
    yield made
    for program in reversed(made.programs):
        if program.process is not None:
            program.end()


def test_an_agent_and_its_workloads(site: Site) -> None:
    server = site.server()
    server.start()
    agent = site.agent(server)
    agent.start()
    server.create_entry(NODE, WORKLOAD)
    assert WORKLOAD in agent.fetch()
    shown = server.ask("agent", "show", "-spiffeID", NODE).stdout
    assert "Attestation type  : sshpop" in shown
    assert "Can re-attest     : true" in shown


def test_renewals_attest_anew_with_the_certificate_of_the_day(site: Site) -> None:
    server = site.server('agent_ttl = "20s"')
    server.start()
    agent = site.agent(server)
    agent.start()
    site.certify(principals="node-2.example.com")
    eventually(
        lambda: 'cert principal is not in domain \\".example.org\\"' in agent.run.output(), "a renewal that is refused"
    )
    site.certify()
    words = "Successfully reattested node"
    eventually(lambda: words in agent.run.output(), "a renewal")
    assert agent.healthy()
    before = agent.run.output().count(words)
    server.ask("agent", "evict", "-spiffeID", NODE)
    eventually(lambda: agent.run.output().count(words) > before, "another attestation")


def test_certificates_that_are_refused(site: Site) -> None:
    server = site.server()
    server.start()
    agent = site.agent(server)
    for options, words in (
        (("-V", "20200101:20210101"), "failed to check host key: ssh: cert has expired"),
        (("-O", "critical:x@example.org"), "unsupported critical option"),
    ):
        site.certify(*options)
        agent.run.start()
        eventually(lambda words=words: words in agent.run.output(), words)  # type: ignore[misc]
        agent.run.end()
    site.certify(ca=ssh_hosts.make_key(site.folder / "stranger"))
    agent.run.start()
    eventually(lambda: "no authorities for hostname: node-1.example.org:22" in agent.run.output(), "a stranger's CA")
    assert "attestor(sshpop): failed to check host key: ssh: no authorities" in server.run.output()
    assert "No attested agents found" in server.ask("agent", "list").stdout
    assert "Traceback" not in agent.run.output() + server.run.output()


def test_files_that_cannot_be_used_end_the_start(site: Site) -> None:
    server = site.server()
    site.authorities.write_text("# nobody\n")
    words = f'failed to get cert authorities from file: no data found in file: "{site.authorities}"'
    refused = command(spire.SERVER, "validate", "-config", str(server.config))
    assert refused.returncode == 1
    assert words in refused.stderr
    server.run.start()
    assert server.run.wait() == 1
    assert words in server.run.output().replace('\\"', '"')
    site.authorities.write_text(site.ca.public)
    server.start()
    agent = site.agent(server)
    site.host.certificate.unlink()
    agent.run.start()
    assert agent.run.wait() == 1
    assert f"failed to read host cert file: {site.host.certificate}: No such file" in agent.run.output()
    assert "agent.conf:" in agent.run.output()
    assert "Traceback" not in agent.run.output() + server.run.output()
