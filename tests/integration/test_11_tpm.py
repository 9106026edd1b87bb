"""Server and agent with their keys in one TPM, behind a resource manager as the kernel's."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.simulators import swtpm, tpm_resource_manager
from tests.simulators.spire import Agent, Program, Server, command, eventually
from tests.simulators.swtpm import Swtpm
from tests.simulators.tpm_resource_manager import ResourceManager

NODE = "spiffe://example.org/node"
WORKLOAD = "spiffe://example.org/workload"


@dataclass
class Site:
    folder: Path
    tpm: Swtpm
    kernel: ResourceManager
    programs: list[Program]

    def key_manager(self, name: str, **settings: str) -> str:
        given = {"tcti": self.kernel.client(name), "keys_path": f"{self.folder}/{name}/keys"} | settings
        lines = "\n".join(f'    {key} = "{value}"' for key, value in given.items())
        return f'KeyManager "tpm" {{ plugin_data {{\n{lines}\n  }} }}'

    def server(self, settings: str = "", name: str = "server", **key_manager: str) -> Server:
        made = Server(self.folder / name, self.key_manager(name, **key_manager), settings)
        self.programs.append(made.run)
        return made

    def agent(self, server: Server) -> Agent:
        made = Agent(self.folder / "agent", server, server.join_token(NODE), self.key_manager("agent"))
        self.programs.append(made.run)
        return made


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with swtpm.started(tmp_path / "tpm") as tpm, tpm_resource_manager.before(tpm) as kernel:
        made = Site(tmp_path, tpm, kernel, [])
        yield made
        for program in reversed(made.programs):
            if program.process is not None:
                program.end()


def named(folder: Path) -> dict[str, str]:
    """The mapping of a key store: ids and the Names of their keys."""
    return dict(json.loads((folder / "keys" / "keys.json").read_text())["keys"])


def test_workloads_of_a_server_and_an_agent_whose_keys_are_in_a_tpm(site: Site) -> None:
    server = site.server()
    server.start()
    agent = site.agent(server)
    agent.start()
    server.create_entry(NODE, WORKLOAD)
    assert WORKLOAD in agent.fetch()
    assert set(named(server.folder)) == {"x509-CA-A", "JWT-Signer-A"}
    assert len(named(agent.folder)) == 1

    assert "x509-CA-A" in server.ask("keys", "list").stdout
    verified = server.ask("keys", "verify")
    assert "attestation" in verified.stdout
    before = named(server.folder), named(agent.folder), server.bundle()
    for program in (server, agent):
        assert program.run.end() == 0
    assert site.kernel.held("server") == site.kernel.held("agent") == 0
    server.start()
    agent.start()
    assert (named(server.folder), named(agent.folder), server.bundle()) == before
    server.create_entry(NODE, f"{WORKLOAD}/2")
    eventually(lambda: f"{WORKLOAD}/2" in agent.fetch(), "what the restarted server signed")


def test_a_tpm_that_is_reset_costs_neither_a_restart_nor_an_authority(site: Site) -> None:
    server = site.server()
    server.start()
    agent = site.agent(server)
    agent.start()
    authority = server.bundle()
    site.kernel.reset()
    server.create_entry(NODE, WORKLOAD)
    assert WORKLOAD in agent.fetch()
    prepared = server.ask("localauthority", "x509", "prepare")
    assert prepared.returncode == 0
    assert authority in server.bundle()
    assert len(named(server.folder)) == 3


@pytest.mark.parametrize(
    ("settings", "key_manager", "line"),
    [
        ('ca_key_type = "rsa-4096"', {}, "this TPM makes no rsa-4096 keys; TPMs may have ec-p256, ec-p384, rsa-2048"),
        ("", {"tcti": "device:/dev/nothing"}, "there is no TPM at /dev/nothing"),
        ("", {"parent": "0x81000077"}, "the TPM has no key at 0x81000077"),
        ("", {"parent": "srk1"}, "parent: 'srk1' is no persistent handle"),
        ("", {"key_path": "/x"}, "key_path"),
    ],
)
def test_a_refusal_ends_the_server_with_one_line(
    site: Site, settings: str, key_manager: dict[str, str], line: str
) -> None:
    server = site.server(settings, **key_manager)
    began = time.monotonic()
    server.run.start()
    assert server.run.wait() != 0
    assert time.monotonic() - began < 30
    assert line in server.run.output()
    assert "Traceback" not in server.run.output()


def test_blobs_moved_to_another_machine_are_refused(site: Site, tmp_path: Path) -> None:
    server = site.server()
    server.start()
    assert server.run.end() == 0
    with swtpm.started(tmp_path / "other") as other:
        server.key_manager = site.key_manager("copy", keys_path=f"{server.folder}/keys", tcti=other.tcti)
        server.configure()
        server.run.start()
        assert server.run.wait() != 0
    assert "the blobs belong to another TPM or parent" in server.run.output()


def test_the_tools_of_tpm2_tools_see_nothing_left_behind(site: Site) -> None:
    server = site.server()
    server.start()
    assert server.run.end() == 0
    for kind in ("transient", "loaded-session", "saved-session", "persistent"):
        assert command("tpm2_getcap", f"handles-{kind}", environment={"TPM2TOOLS_TCTI": site.tpm.tcti}).stdout == ""
