"""sshpop and http_challenge between our halves, and between ours and another's (SPIRE_SERVER_BIN, SPIRE_AGENT_BIN)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from attestors.sshpop import authorized_keys, certificate, verifier
from tests.interop.conftest import Pair
from tests.simulators import ssh_hosts
from tests.simulators.ports import free_port
from tests.simulators.spire import Agent, Program, Server, eventually
from tests.simulators.ssh_hosts import SshKey
from tests.simulators.web_hosts import WebHost

pytestmark = pytest.mark.interop

BY_NAME = "/sshpop/{{ .Hostname }}/{{ index .ValidPrincipals 1 }}/{{ .Serial }}/{{ .KeyId }}"
HOST = "127.0.0.1"
IT = f"spiffe://example.org/spire/agent/http_challenge/{HOST}"


@dataclass
class Site:
    """The programs of a pair, which end with the test."""

    folder: Path
    pair: Pair
    programs: list[Program] = field(default_factory=list[Program])

    def server(self, kind: str, data: str) -> Server:
        block = f'NodeAttestor "{kind}" {{ plugin_data {{ {data} }} }}'
        made = Server(self.folder / "server", program=self.pair.server, node_attestor=block)
        self.programs.append(made.run)
        made.start()
        return made

    def agent(self, server: Server, name: str, plugin: str) -> Agent:
        made = Agent(self.folder / name, server, program=self.pair.agent, node_attestor=plugin)
        self.programs.append(made.run)
        return made

    def refused(self, agent: Agent, words: str) -> None:
        """An attestation that is to fail with these words, which the agent tells."""
        agent.run.start()
        eventually(lambda: words in agent.run.output().replace('\\"', '"'), f"{words}: {agent.run.output()[-2000:]}")
        agent.run.end()


@pytest.fixture
def site(tmp_path: Path, pair: Pair) -> Iterator[Site]:
    made = Site(tmp_path, pair)
    yield made
    for program in reversed(made.programs):
        if program.process is not None:
            program.end()


@pytest.fixture
def ca(tmp_path: Path) -> SshKey:
    return ssh_hosts.make_key(tmp_path / "ca", "ecdsa-256")


def agents(server: Server) -> str:
    return server.ask("agent", "list").stdout


def test_hosts_with_keys_of_each_kind(site: Site, ca: SshKey) -> None:
    """Agents are named by fingerprints, which both halves' authors must find the same."""
    rsa = ssh_hosts.make_key(site.folder / "rsa-ca", "rsa-2048")
    server = site.server("sshpop", f"cert_authorities = {json.dumps([ca.public, rsa.public])}")
    for number, kind in enumerate(ssh_hosts.KINDS):
        host = ssh_hosts.make_key(site.folder / kind, kind)
        ssh_hosts.certify(rsa if number % 2 else ca, host)
        agent = site.agent(server, f"agent-{kind}", host.plugin())
        agent.start()
        held = certificate.parse(authorized_keys.first(host.certificate.read_text()).blob)
        assert f"spiffe://example.org/spire/agent/sshpop/{verifier.fingerprint(held)}" in agents(server)
        agent.run.end()


def test_hosts_that_a_template_names(site: Site, ca: SshKey) -> None:
    authorities = site.folder / "authorities"
    authorities.write_text(ca.public)
    server = site.server(
        "sshpop",
        f'cert_authorities_path = "{authorities}"\n canonical_domain = "example.org"\n'
        f' agent_path_template = "{BY_NAME}"',
    )
    host = ssh_hosts.make_key(site.folder / "host")
    ssh_hosts.certify(ca, host, principals="node-1.example.org,other")
    site.agent(server, "agent", host.plugin()).start()
    assert "spiffe://example.org/spire/agent/sshpop/node-1/other/42/rack-7" in agents(server)


def test_hosts_that_are_refused(site: Site, ca: SshKey) -> None:
    server = site.server("sshpop", f'cert_authorities = ["{ca.public.strip()}"]\n canonical_domain = "example.org"')
    host = ssh_hosts.make_key(site.folder / "host")
    stranger = ssh_hosts.make_key(site.folder / "stranger")
    agent = site.agent(server, "agent", host.plugin())
    checked = "nodeattestor(sshpop): failed to check host key: ssh: "

    ssh_hosts.certify(ca, host, "-V", "20200101:20210101")
    site.refused(agent, f"{checked}cert has expired")
    ssh_hosts.certify(ca, host, "-V", "20900101:20910101")
    site.refused(agent, f"{checked}cert is not yet valid")
    ssh_hosts.certify(stranger, host)
    site.refused(agent, f"{checked}no authorities for hostname: node-1.example.org:22")
    ssh_hosts.certify(ca, host, user=True)
    site.refused(agent, f"{checked}certificate presented as a host key has type 1")
    ssh_hosts.certify(ca, host, "-O", "critical:verify-required@example.org")
    site.refused(agent, f'{checked}unsupported critical option "verify-required@example.org" in certificate')
    ssh_hosts.certify(ca, host, principals="node-1.example.com")
    site.refused(agent, 'failed to decanonicalize hostname: cert principal is not in domain ".example.org"')
    ssh_hosts.certify(ca, host, principals="")
    site.refused(agent, "nodeattestor(sshpop): cert has no valid principals")
    assert "No attested agents found" in agents(server)


def asked_at(port: int, **more: str | int) -> str:
    settings = "\n".join(f"{key} = {json.dumps(value)}" for key, value in {"hostname": HOST, **more}.items())
    return f'NodeAttestor "http_challenge" {{ plugin_data {{ port = {port}\n {settings} }} }}'


def test_a_host_that_tells_what_it_was_told(site: Site) -> None:
    server = site.server("http_challenge", 'allowed_dns_patterns = ["^127[.]", "other"]')
    port = free_port()
    first = site.agent(server, "first", asked_at(port, agentname="one"))
    first.start()
    shown = server.ask("agent", "show", "-spiffeID", IT).stdout
    assert f"http_challenge:hostname:{HOST}" in shown
    assert "Can re-attest     : false" in shown
    assert first.run.end() == 0
    first.start()  # by the SVID that it has

    again = site.agent(server, "again", asked_at(port))
    refusal = "nodeattestor(http_challenge): attestation data has already been used to attest an agent"
    site.refused(again, refusal)
    eventually(lambda: "Attestation data has already been used to attest an agent" in server.run.output(), "a line")
    server.ask("agent", "evict", "-spiffeID", IT)
    again.start()
    assert IT in agents(server)


def test_hosts_that_may_not_attest(site: Site) -> None:
    server = site.server("http_challenge", 'allowed_dns_patterns = ["^127[.]"]')
    port = free_port()
    for name, more, words in (
        ("local", {"hostname": "localhost"}, "you can not use localhost as a hostname"),
        ("outside", {"hostname": "128.0.0.1"}, "the requested hostname is not allowed to connect"),
        ("nobody", {"advertised_port": free_port()}, "challenge verification failed: "),
    ):
        site.refused(site.agent(server, name, asked_at(port, **more)), f"nodeattestor(http_challenge): {words}")
    with WebHost() as host:
        agent = site.agent(server, "wrong", asked_at(port, advertised_port=host.port))
        site.refused(agent, "challenge verification failed: expected nonce was not found in HTTP response")
        host.location = f"http://{HOST}:{port}/.well-known/spiffe/nodeattestor/http_challenge/default/challenge"
        agent = site.agent(server, "redirected", asked_at(port, advertised_port=host.port))
        site.refused(agent, "http redirects are disabled")
        assert set(host.asked) == {"/.well-known/spiffe/nodeattestor/http_challenge/default/challenge"}
    assert "No attested agents found" in agents(server)


def test_a_port_that_the_server_wants(site: Site) -> None:
    port = free_port()
    server = site.server("http_challenge", f"required_port = {port}")
    other = site.agent(server, "other", asked_at(free_port()))
    site.refused(other, "is not allowed to be used by this server")
    site.agent(server, "agent", asked_at(port)).start()
    assert IT in agents(server)
