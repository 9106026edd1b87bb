"""What the tests of served key stores share: the one-file plugins, processes, and servers and agents by the runbook.

SPIRE_SERVER_BIN and SPIRE_AGENT_BIN name those of SPIRE; ours are hosts in any case.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.simulators import softhsm, spire
from tests.simulators.once import made_once
from tests.simulators.spire import ROOT

RUNBOOK = (ROOT / "docs" / "runbooks" / "go-spire.md").read_text()
SERVER_BLOCK, TPM_BLOCK, AGENT_BLOCK = re.findall(r"```hcl\n(.*?)```", RUNBOOK, re.DOTALL)
OTHERS = os.environ.get("SPIRE_SERVER_BIN"), os.environ.get("SPIRE_AGENT_BIN")


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:

    def build(folder: Path) -> None:
        subprocess.run([sys.executable, str(ROOT / "ci" / "keystore-plugins"), str(folder)], check=True)

    return made_once(tmp_path_factory, "plugins", build)


def children(pid: int) -> set[int]:
    return {int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()}


def descendants(pid: int) -> set[int]:
    found = children(pid)
    return found.union(*map(descendants, found))


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def none_alive(pids: set[int]) -> bool:
    return not any(map(alive, pids))


@dataclass(frozen=True)
class Programs:
    server: str
    agent: str


CHOSEN = {"ours": Programs(spire.SERVER, spire.AGENT)}
if OTHERS[0] and OTHERS[1]:
    CHOSEN["others"] = Programs(OTHERS[0], OTHERS[1])


@dataclass
class House:
    """A folder with a token, and the runbook's blocks put into force there."""

    folder: Path
    plugins: Path
    programs: Programs
    hsm: softhsm.SoftHsm
    tcti: str = ""

    def block(self, text: str) -> str:
        """The runbook's own, with places that a test can have."""
        name = "tpm" if "tcti" in text else "pkcs11"
        checksum = hashlib.sha256((self.plugins / f"spire-keystore-{name}").read_bytes()).hexdigest()
        for written, here in {
            "/usr/lib/spire/plugins": str(self.plugins),
            "CHECKSUM": checksum,
            "/usr/lib/softhsm/libsofthsm2.so": softhsm.MODULE,
            "/etc/spire/pin": str(self.hsm.pin_file),
            "/var/lib/spire": str(self.folder),
            "device:/dev/tpmrm0": self.tcti,
        }.items():
            text = text.replace(written, here)
        return text

    def server(self, key_manager: str) -> spire.Server:
        return spire.Server(
            self.folder / "server",
            key_manager=key_manager,
            program=self.programs.server,
            environment={"SOFTHSM2_CONF": str(self.hsm.configuration)},
        )

    def agent(self, server: spire.Server) -> spire.Agent:
        return spire.Agent(
            self.folder / "agent",
            server,
            token=server.join_token("spiffe://example.org/node"),
            key_manager=self.block(AGENT_BLOCK),
            program=self.programs.agent,
            environment={"SOFTHSM2_CONF": str(self.hsm.configuration)},
        )

    def labels(self) -> list[str]:
        return re.findall(r"label: +(\S.*)", self.hsm.tool("--list-objects", "--type", "privkey"))


@pytest.fixture(params=list(CHOSEN))
def house(request: pytest.FixtureRequest, plugins: Path, tmp_path: Path) -> House:
    return House(tmp_path, plugins, CHOSEN[str(request.param)], softhsm.SoftHsm.create(tmp_path / "hsm"))


@pytest.fixture
def running(house: House) -> Iterator[spire.Server]:
    server = house.server(house.block(SERVER_BLOCK))
    try:
        server.start()
        yield server
    finally:
        end(server)


def authority(server: spire.Server, kind: str = "active", api: str = "x509") -> str:
    return str(server.ask_json("localauthority", api, "show")[kind]["authority_id"])


def agent_of(agent: spire.Agent | None) -> spire.Agent:
    assert agent is not None
    return agent


def pids_of(program: spire.Program) -> set[int]:
    assert program.process is not None
    return descendants(program.process.pid)


def end(*programs: spire.Server | spire.Agent | None) -> None:
    for program in programs:
        if program is not None and program.run.process is not None:
            program.run.end()


def plugin_of(server: spire.Server) -> int:
    """Only the server's own child: a plugin with a checksum may show as /proc/self/fd/N."""
    assert server.run.process is not None
    [pid] = children(server.run.process.pid)
    return pid


def signs(server: spire.Server) -> bool:
    done = server.ask("x509", "mint", "-spiffeID", "spiffe://example.org/minted", check=False)
    return done.returncode == 0
