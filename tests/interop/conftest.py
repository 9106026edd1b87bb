"""What the interop tests share: the pairs of programs under test, and the clients that are built."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.simulators import spire
from tests.simulators.once import go_program, made_once

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Pair:
    """A server and an agent, each ours or another's."""

    name: str
    server: str
    agent: str


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest to build comes first, so that the others run beside it."""
    items.sort(key=lambda item: not item.name.startswith("test_rust_spiffe_watches"))


def pairs() -> list[Pair]:
    """Ours with ours always; mixed halves where SPIRE_SERVER_BIN and SPIRE_AGENT_BIN name another's binaries."""
    found = [Pair("ours", spire.SERVER, spire.AGENT)]
    if other := os.environ.get("SPIRE_AGENT_BIN"):
        found.append(Pair("other-agent", spire.SERVER, other))
    if other := os.environ.get("SPIRE_SERVER_BIN"):
        found.append(Pair("other-server", other, spire.AGENT))
    return found


@pytest.fixture(params=pairs(), ids=lambda pair: pair.name)
def pair(request: pytest.FixtureRequest) -> Pair:
    chosen = request.param
    assert isinstance(chosen, Pair)
    return chosen


@pytest.fixture(scope="session")
def go_workload(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The go-spiffe workload, built once. A Go toolchain that is missing is a failure."""
    return go_program(tmp_path_factory, HERE / "gospiffe")


@pytest.fixture(scope="session")
def rust_workload(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The workload on the spiffe crate, built once. A Rust toolchain that is missing is a failure."""

    def build(folder: Path) -> None:
        # Beside the sources cargo would leave a lock file.
        shutil.copytree(HERE / "rust", folder, dirs_exist_ok=True)
        subprocess.run(["cargo", "build", "--quiet"], cwd=folder, check=True)

    return str(made_once(tmp_path_factory, "rust", build) / "target" / "debug" / "workload")


@pytest.fixture(scope="session")
def java_workload(tmp_path_factory: pytest.TempPathFactory) -> Sequence[str]:
    """How to run the workload on java-spiffe, compiled once. A JDK or Maven that is missing is a failure."""

    def build(folder: Path) -> None:
        goals = ("compile", "dependency:copy-dependencies")
        subprocess.run(
            ["mvn", "--quiet", "--batch-mode", f"-Dworkload.build={folder}", *goals], cwd=HERE / "java", check=True
        )

    target = made_once(tmp_path_factory, "java", build)
    return ("java", "-cp", f"{target}/classes:{target}/dependency/*", "Workload")


@pytest.fixture
def started(pair: Pair, tmp_path: Path) -> Iterator[tuple[spire.Server, spire.Agent]]:
    """The pair up and attested, SVIDs living 20 s, with one entry for this user's processes."""
    server = spire.Server(
        tmp_path / "server", program=pair.server, settings='default_x509_svid_ttl = "20s"\n  agent_ttl = "30s"'
    )
    agent: spire.Agent | None = None
    try:
        server.start()
        token = server.join_token("spiffe://example.org/node")
        agent = spire.Agent(tmp_path / "agent", server, token=token, program=pair.agent)
        agent.start()
        server.create_entry("spiffe://example.org/node", "spiffe://example.org/workload")
        agent.fetch()
        yield server, agent
    finally:
        for program in (agent, server):
            if program is not None and program.run.process is not None:
                program.run.end()


def lines(*command: str) -> list[dict[str, Any]]:
    """The JSON lines that a client prints. A client that fails fails the test with its output."""
    done = spire.command(*command, timeout=170)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def python_client(*arguments: str) -> list[dict[str, Any]]:
    return lines(sys.executable, str(HERE / "python_workload.py"), *arguments)
