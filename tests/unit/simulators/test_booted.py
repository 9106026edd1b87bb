"""A software TPM that "booted" has the registers that the real machine had."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from attestors.tpm.ima import replay
from attestors.tpm.ima.model import Prefix
from attestors.tpm.pcrs import IMA_PCR
from tests.simulators import booted
from tests.simulators.booted import GOLDEN, MACHINES, Boot
from tests.simulators.swtpm import Swtpm

ALL = sorted(folder.name for folder in MACHINES.iterdir() if (folder / "event_log").exists())


@pytest.fixture
def folder() -> Generator[Path]:
    """With a short path, for sockets."""
    with TemporaryDirectory(prefix="booted-", dir="/tmp") as path:
        yield Path(path)


@pytest.mark.parametrize("machine", ALL)
def test_registers_are_those_of_the_machine(folder: Path, machine: str) -> None:
    with booted.started(folder, Boot.of(machine, later=True)) as found:
        for bank in ("sha1", "sha256"):
            assert found.registers(bank) == booted.registers(machine, bank, later=True)


def test_measured_files_are_in_list_and_register(folder: Path) -> None:
    with booted.started(folder) as machine:
        before = replay.replay(machine.ima.read_bytes(), Prefix(), _ima(machine), "sha256")
        machine.measure("/usr/bin/more", b"more")
        machine.violate("/usr/bin/less")
        after = replay.replay(machine.ima.read_bytes()[before.prefix.size :], before.prefix, _ima(machine), "sha256")
        assert [entry.path for entry in after.entries] == ["/usr/bin/more", "/usr/bin/less"]


def test_reboots_reset_the_tpm(folder: Path) -> None:
    with booted.started(folder) as machine:
        machine.measure("/usr/bin/more", b"more")
        machine.reboot()
        assert machine.registers("sha256") == booted.registers(GOLDEN, "sha256")
        machine.reboot("other-kernel")
        assert machine.registers("sha256") == booted.registers("other-kernel", "sha256")
        assert _reset_count(machine.tpm) >= 2


def _ima(machine: booted.Booted) -> bytes:
    return machine.registers("sha256").values[IMA_PCR]


def _reset_count(tpm: Swtpm) -> int:
    clock = tpm.tool("readclock")
    return int(next(line.split(":")[1] for line in clock.splitlines() if "reset_count" in line))
