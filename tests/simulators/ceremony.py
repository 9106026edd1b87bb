"""Roots made in devices as operators make them: by the commands of docs/runbooks/hardware-roots.md, one by one."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.simulators.softhsm import MODULE, USER_PIN, SoftHsm
from tests.simulators.swtpm import Swtpm

RUNBOOK = Path(__file__).parents[2] / "docs" / "runbooks" / "hardware-roots.md"
HANDLE = "0x81000100"


def commands(section: str) -> list[str]:
    """The shell blocks of a section of the runbook, but for those that name the operator's own device."""
    [text] = [part for part in RUNBOOK.read_text().split("\n## ") if part.startswith(section)]
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block for block in blocks if not block.startswith("export ")]


def in_token(token: SoftHsm, folder: Path, changes: Mapping[str, str] | None = None) -> Path:
    """Make the root in a token; returns its certificate. `changes` are words of the commands to say otherwise."""
    environment = token.environment | {"MODULE": MODULE, "TOKEN": token.label, "GNUTLS_PIN": USER_PIN}
    for block in commands("1. Make the root in a token"):
        run(block, folder, environment, changes)
    return folder / "root.pem"


def in_tpm(tpm: Swtpm, folder: Path) -> Path:
    """Make an intermediate in a TPM, at HANDLE, tpm.pem in the folder, and its root; returns the root's certificate."""
    for block in commands("1. Or make it in a TPM"):
        _run_each(block, tpm, folder)
    return folder / "root.pem"


def self_signed_in_tpm(tpm: Swtpm, folder: Path) -> Path:
    """Make a root in a TPM, at HANDLE; returns its certificate."""
    for block in commands("1. Or a self-signed root in a TPM"):
        _run_each(block, tpm, folder)
    return folder / "root.pem"


def _run_each(block: str, tpm: Swtpm, folder: Path) -> None:
    environment = {**os.environ, "TPM2TOOLS_TCTI": tpm.tcti, "TPM2OPENSSL_TCTI": tpm.tcti, "PASSPHRASE": "long enough"}
    if "<<" in block:
        run(block, folder, environment)
        return
    for line in re.split(r"(?<!\\)\n", block.strip()):
        run(line, folder, environment)
        # A resource manager, as /dev/tpmrm0 has it, does this at the end of each command.
        run("tpm2_flushcontext -t", folder, environment)


def run(script: str, folder: Path, environment: Mapping[str, str], changes: Mapping[str, str] | None = None) -> None:
    for before, after in (changes or {}).items():
        script = script.replace(before, after)
    shell = ("bash", "-euo", "pipefail", "-c", script)
    done = subprocess.run(shell, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
