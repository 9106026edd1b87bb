"""A boot policy's life: learned of a golden machine, enforced, broken by a file, and mended by the evidence of it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.simulators.booted import Boot, Booted
from tests.simulators.spire import Agent, Program, Server, eventually
from tests.simulators.tpm_manufacturer import Manufacturer

TOOL = b"a tool that somebody installed"


def command(program: str, *args: str | Path) -> subprocess.CompletedProcess[str]:
    path = Path(sys.executable).with_name(program)
    return subprocess.run([path, "tpm", *args], capture_output=True, text=True, check=False, timeout=120)


def said(program: Program, words: str) -> Callable[[], bool]:
    return lambda: words in program.output()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[tuple[Booted, Path]]:
    """A machine, and the folder of those who vouch for its TPM."""
    maker = Manufacturer(tmp_path / "maker")
    anchors = tmp_path / "anchors"
    anchors.mkdir()
    with maker.started(tmp_path / "tpm") as tpm:
        for path in (maker.root_path, maker.intermediate_path):
            (anchors / path.name).write_bytes(path.read_bytes())
        booted = Booted(tpm, tmp_path / "securityfs")
        booted.start(Boot.of())
        yield booted, anchors


def test_from_a_golden_machine_to_a_file_that_is_refused_and_back(machine: tuple[Booted, Path], tmp_path: Path) -> None:
    booted, anchors = machine
    golden, policy, kept = tmp_path / "golden.json", tmp_path / "boot.hcl", tmp_path / "evidence"
    kept.mkdir(mode=0o700)
    logs = ("-eventLogPath", booted.event_log, "-imaPath", booted.ima)
    taken = command("spire-agent", "evidence", "-tcti", booted.tpm.tcti, "-out", golden, *logs)
    assert taken.returncode == 0, taken.stderr
    learned = command("spire-server", "policy", "learn", "-evidence", golden, "-policy", policy)
    assert learned.returncode == 0, learned.stderr
    assert command("spire-server", "policy", "check", "-evidence", golden, "-policy", policy).returncode == 0

    programs: list[Program] = []
    try:
        server = Server(
            tmp_path / "server",
            node_attestor=f"""NodeAttestor "tpm" {{ plugin_data {{
    endorsement_ca_path = "{anchors}"
    policy_path = "{policy}"
    evidence_path = "{kept}"
}} }}""",
        )
        programs.append(server.run)
        server.start()
        agent = Agent(
            tmp_path / "agent",
            server,
            key_manager=f'KeyManager "tpm" {{ plugin_data {{ tcti = "{booted.tpm.tcti}" }} }}',
            node_attestor=f"""NodeAttestor "tpm" {{ plugin_data {{
    tcti = "{booted.tpm.tcti}"
    event_log_path = "{booted.event_log}"
    ima_path = "{booted.ima}"
    reattest_interval = "2s"
}} }}""",
        )
        programs.append(agent.run)
        agent.start()
        name = server.ask("agent", "list").stdout.partition("spiffe://")[2].split()[0]
        selectors = server.ask("agent", "show", "-spiffeID", f"spiffe://{name}").stdout
        assert "tpm:policy:golden" in selectors
        assert "tpm:ima:golden" in selectors
        assert agent.run.end() == 0

        booted.measure("/opt/tool", TOOL)
        agent.run.start()
        eventually(said(server.run, "/opt/tool"), "a refusal that names the file")
        eventually(lambda: list(kept.glob("*.refused.json")), "its evidence")
        [refused] = kept.glob("*.refused.json")
        checked = command("spire-server", "policy", "check", "-evidence", refused, "-policy", policy)
        assert checked.returncode == 1
        assert 'the file "/opt/tool"' in checked.stdout
        assert "is not among the allowed files" in checked.stdout
        assert "without a quote" not in checked.stdout

        allowed = f'"/opt/tool" = ["sha256:{hashlib.sha256(TOOL).hexdigest()}"]'
        policy.write_text(policy.read_text().replace("allow {", f"allow {{\n      {allowed}"))
        mended = command("spire-server", "policy", "check", "-evidence", refused, "-policy", policy)
        assert mended.returncode == 0, mended.stdout
        eventually(said(server.run, "The boot policy was read anew"), "the server that knows it too")
        eventually(said(agent.run, "Successfully reattested node"), "the node that is let in again")
    finally:
        for program in reversed(programs):
            if program.process is not None:
                program.end()
