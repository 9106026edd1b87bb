"""evmctl, which verifies IMA lists too, comes to the same result about the machines' and altered ones."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from attestors.tpm.ima import replay
from attestors.tpm.ima.model import Prefix
from attestors.tpm.pcrs import IMA_PCR
from operations.errors import Refused
from tests.simulators import ima_lists
from tests.simulators.booted import MACHINES, Boot, registers

ALL = sorted(folder.name for folder in MACHINES.iterdir() if (folder / "ima").exists())


def evmctl_agrees(folder: Path, data: bytes, machine: str, bank: str, *, later: bool) -> bool:
    """Whether the list replays to the machine's registers, if evmctl is asked; it fails for violations otherwise."""
    values = registers(machine, bank, later=later).values
    (folder / "pcrs").write_text("".join(f"PCR-{number:02}: {value.hex()}\n" for number, value in values.items()))
    (folder / "list").write_bytes(data)
    done = subprocess.run(
        ["evmctl", "ima_measurement", "--ignore-violations", "--pcrs", f"{bank},pcrs", "list"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    matches = "Matched per TPM bank calculated digest" in done.stdout + done.stderr
    assert matches == (done.returncode == 0), done.stdout + done.stderr
    return matches


def replays(data: bytes, machine: str, bank: str, *, later: bool) -> bool:
    try:
        found = replay.replay(data, Prefix(), registers(machine, bank, later=later).values[IMA_PCR], bank)
    except Refused:
        return False
    return found.prefix.size == len(data)


@pytest.mark.parametrize("later", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("bank", ["sha1", "sha256"])
@pytest.mark.parametrize("machine", ALL)
def test_lists_of_machines(tmp_path: Path, machine: str, bank: str, later: bool) -> None:
    data = Boot.of(machine, later=later).ima
    assert replays(data, machine, bank, later=later)
    assert evmctl_agrees(tmp_path, data, machine, bank, later=later)


@pytest.mark.parametrize("bank", ["sha1", "sha256"])
@pytest.mark.parametrize("machine", ALL)
def test_lists_that_do_not_replay(tmp_path: Path, machine: str, bank: str) -> None:
    more = ima_lists.original("/a", bytes(20)) if machine == "seabios" else ima_lists.entry("/a", bytes(32))
    data = more + Boot.of(machine).ima
    assert not replays(data, machine, bank, later=False)
    assert not evmctl_agrees(tmp_path, data, machine, bank, later=False)
