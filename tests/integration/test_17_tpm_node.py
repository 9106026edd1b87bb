"""Nodes that are what their TPM says: known by certificate or hash, in a state that a policy allows, every time."""

from __future__ import annotations

import random
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.simulators import tpm_resource_manager
from tests.simulators.booted import Boot, Booted
from tests.simulators.spire import AGENT, SERVER, Agent, Program, Server, command, eventually
from tests.simulators.tpm_manufacturer import Manufacturer

WORKLOAD = "spiffe://example.org/workload"
IDENTITY = re.compile(r"spiffe://example\.org/spire/agent/tpm/([0-9a-f]{64})")
POLICY = """
policy "golden" {{
  pcr = {{ "4" = "{pcr4}" }}
  events {{ secure_boot = true }}
}}
"""


@dataclass
class Site:
    """A machine with a TPM that a manufacturer made, a server that trusts the manufacturer, and the machine's agent."""

    folder: Path
    maker: Manufacturer
    machine: Booted
    programs: list[Program]

    def server(self, data: str = "", settings: str = "") -> Server:
        block = f'NodeAttestor "tpm" {{ plugin_data {{\n{data or self.certified}\n}} }}'
        made = Server(self.folder / "server", settings=settings, node_attestor=block)
        self.programs.append(made.run)
        made.start()
        return made

    @property
    def certified(self) -> str:
        anchors = self.folder / "anchors"
        anchors.mkdir(exist_ok=True)
        (anchors / "root.pem").write_bytes(self.maker.root_path.read_bytes())
        (anchors / "intermediate.pem").write_bytes(self.maker.intermediate_path.read_bytes())
        return f'endorsement_ca_path = "{anchors}"'

    def agent(self, server: Server, tcti: str, data: str = "", *, in_tpm: bool = False) -> Agent:
        given = f"""
    tcti = "{tcti}"
    event_log_path = "{self.machine.event_log}"
    ima_path = "{self.machine.ima}"
    {data}"""
        block = f'NodeAttestor "tpm" {{ plugin_data {{ {given}\n }} }}'
        keys = f'KeyManager "tpm" {{ plugin_data {{ tcti = "{tcti}" }} }}' if in_tpm else ""
        made = Agent(self.folder / "agent", server, key_manager=keys, node_attestor=block)
        self.programs.append(made.run)
        return made

    def policy(self) -> str:
        file = self.folder / "policy.hcl"
        file.write_text(POLICY.format(pcr4=self.machine.registers("sha256").values[4].hex()))
        return f'{self.certified}\n policy_path = "{file}"'


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    maker = Manufacturer(tmp_path / "maker")
    with maker.started(tmp_path / "tpm") as tpm:
        machine = Booted(tpm, tmp_path / "securityfs")
        machine.start(Boot.of())
        made = Site(tmp_path, maker, machine, [])
        yield made
        for program in reversed(made.programs):
            if program.process is not None:
                program.end()


def known(server: Server) -> str:
    """The one agent's identity."""
    found = IDENTITY.search(server.ask("agent", "list").stdout)
    assert found is not None
    return found[0]


def shown(server: Server) -> str:
    return server.ask("agent", "show", "-spiffeID", known(server)).stdout


def _serves(agent: Agent) -> bool:
    if not agent.run.running:
        agent.run.start()
    return agent.ask("healthcheck", check=False).returncode == 0


def said(program: Program, words: str, times: int = 1) -> Callable[[], bool]:
    return lambda: program.output().count(words) >= times


def test_a_node_known_by_its_manufacturer_proves_its_key_and_leaves_a_bare_tpm_clean(site: Site) -> None:
    """KeyManager and attestor share the one connection that a bare TPM takes."""
    before = site.machine.tpm.handles()
    server = site.server(f"{site.policy()}\n require_tpm_key = true")
    agent = site.agent(server, site.machine.tpm.tcti, in_tpm=True)
    agent.start()
    selectors = shown(server)
    for selector in ("tpm:manufacturer:", "tpm:policy:golden", "tpm:secureboot:true", f"tpm:ek:{known(server)[-64:]}"):
        assert selector in selectors
    assert "Can re-attest     : true" in selectors
    server.create_entry(known(server), WORKLOAD)
    assert WORKLOAD in agent.fetch()
    assert agent.run.end() == 0
    assert site.machine.tpm.handles() == before
    assert (agent.folder / "tpm-attestation.json").stat().st_mode & 0o777 == 0o600
    assert server.run.end() == 0


def test_a_node_known_by_the_hash_of_its_endorsement_key(site: Site) -> None:
    tpm = site.machine.tpm
    hashes = site.folder / "ek-hashes"
    hashes.write_text("")
    server = site.server(f'endorsement_hash_path = "{hashes}"')
    agent = site.agent(server, tpm.tcti, 'ek = "ecc"')
    agent.run.start()
    eventually(said(agent.run, "the endorsement key"), "a refusal that names the key")
    found = re.search(r"the endorsement key ([0-9a-f]{64})", agent.run.output())
    assert found is not None
    assert agent.run.wait() != 0
    assert "Traceback" not in agent.run.output()
    hashes.write_text(f"{found[1]}\n")
    eventually(lambda: _serves(agent), "an agent that is known, once the server has looked at the file again")
    assert known(server).endswith(found[1])


def test_a_key_outside_of_the_tpm_is_refused_where_it_must_be_inside(site: Site) -> None:
    server = site.server(f"{site.certified}\n require_tpm_key = true")
    agent = site.agent(server, site.machine.tpm.tcti)
    agent.run.start()
    assert agent.run.wait() != 0
    assert "which require_tpm_key asks for: give the agent KeyManager" in agent.run.output()


def test_the_node_attests_anew_at_an_interval(site: Site) -> None:
    server = site.server()
    agent = site.agent(server, site.machine.tpm.tcti, 'reattest_interval = "2s"', in_tpm=True)
    agent.start()
    eventually(said(agent.run, "Successfully reattested node", 2), "two attestations besides the first")
    assert agent.healthy()


@pytest.mark.timeout(600)
def test_kills_amid_attestations_lose_nothing(site: Site) -> None:
    """The server may have taken a new SVID for granted that the agent never wrote down."""
    server = site.server(f"{site.policy()}\n require_tpm_key = true")
    with tpm_resource_manager.before(site.machine.tpm) as kernel:
        agent = site.agent(server, kernel.client("agent"), 'reattest_interval = "1s"', in_tpm=True)
        agent.start()
        server.create_entry(known(server), WORKLOAD)
        assert WORKLOAD in agent.fetch()
        seed = random.randrange(2**32)
        print("seed", seed)
        chance = random.Random(seed)
        for _ in range(6):
            threading.Event().wait(chance.random() * 3)
            agent.run.end(signal.SIGKILL)
            agent.start()
            assert WORKLOAD in agent.fetch()
        reattested = agent.run.output().count("Successfully reattested node")
        eventually(said(agent.run, "Successfully reattested node", reattested + 2), "attestations that go on")
    assert len(server.ask_json("agent", "list")["agents"]) == 1


@pytest.mark.parametrize("evict", [False, True])
def test_another_kernel_is_refused_at_the_next_attestation(site: Site, evict: bool) -> None:
    """The agent serves on while its SVID lasts; with evict_on_failure it ends, and what it had with it."""
    server = site.server(f"{site.policy()}\n evict_on_failure = {str(evict).lower()}")
    settings = 'reattest_interval = "3s"'
    with ExitStack() as stack:
        kernel = stack.enter_context(tpm_resource_manager.before(site.machine.tpm))
        # Not by the interval: one that is ended in the middle of an attestation may not know of its last SVID.
        agent = site.agent(server, kernel.client("agent"), in_tpm=True)
        agent.start()
        server.create_entry(known(server), WORKLOAD)
        assert WORKLOAD in agent.fetch()
        assert agent.run.end() == 0
    site.machine.reboot("other-kernel")
    with tpm_resource_manager.before(site.machine.tpm) as kernel:
        again = site.agent(server, kernel.client("again"), settings, in_tpm=True)
        again.run.start()
        eventually(said(again.run, "policy golden"), "a refusal that names the policy")
        eventually(said(again.run, "PCR 4"), "and the register")
        eventually(said(server.run, "Node is refused"), "the server's own record")
        if evict:
            assert again.run.wait() != 0
            assert "the server does not let this node attest again" in again.run.output()
            assert "Traceback" not in again.run.output()
        else:
            assert again.healthy()
            assert WORKLOAD in again.fetch()


def test_a_program_that_the_golden_machine_never_ran_is_refused_while_the_agent_runs(site: Site) -> None:
    """From the machine's own evidence to a policy, and from there to the first file that is not in it."""
    learned, taken = site.folder / "learned.hcl", site.folder / "evidence.json"
    with tpm_resource_manager.before(site.machine.tpm) as kernel:
        logs = ("-eventLogPath", str(site.machine.event_log), "-imaPath", str(site.machine.ima))
        done = command(AGENT, "tpm", "evidence", "-tcti", kernel.client("operator"), "-out", str(taken), *logs)
        assert done.returncode == 0, done.stderr
        assert taken.stat().st_mode & 0o777 == 0o600
        done = command(SERVER, "tpm", "policy", "learn", "-evidence", str(taken), "-policy", str(learned))
        assert done.returncode == 0, done.stderr
        server = site.server(f'{site.certified}\n policy_path = "{learned}"')
        agent = site.agent(server, kernel.client("agent"), 'reattest_interval = "2s"', in_tpm=True)
        agent.start()
        assert known(server)[-64:] in done.stdout + learned.read_text() + taken.read_text()
        eventually(said(agent.run, "Successfully reattested node"), "a renewal that the policy allows")
        assert "tpm:ima:golden" in shown(server)
        site.machine.measure("/usr/bin/stranger", b"never seen")
        eventually(said(agent.run, "/usr/bin/stranger"), "a refusal that names the file")
        assert agent.healthy()


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ('reattest_interval = "100ms"', "reattest_interval: 1s or longer"),
        ('reattest_interval = "soon"', "invalid duration"),
        ('ek = "dsa"', "ek"),
        ('platform_certificate_path = "/nothing"', "platform_certificate_path: /nothing"),
        ('endorsement_auth_file = "/nothing"', "/nothing"),
        ("pcrs = 1", "pcrs"),
    ],
)
def test_a_setting_that_cannot_be_used_ends_the_agent_with_one_line(tmp_path: Path, setting: str, line: str) -> None:
    block = f'NodeAttestor "tpm" {{ plugin_data {{ tcti = "device:/dev/nothing"\n {setting} }} }}'
    server = Server(tmp_path / "server")
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "bundle.pem").write_text("")
    agent = Agent(tmp_path / "agent", server, node_attestor=block)
    agent.run.start()
    assert agent.run.wait() != 0
    assert line in agent.run.output()
    assert "Traceback" not in agent.run.output()
