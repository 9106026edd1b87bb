"""A software TPM that "booted" has the registers that the real machine had."""

from __future__ import annotations

import struct
from collections.abc import Generator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from attestors.tpm.event_log import parser
from attestors.tpm.event_log import replay as event_log
from attestors.tpm.ima import replay
from attestors.tpm.ima.model import Prefix
from attestors.tpm.pcrs import IMA_PCR
from tests.simulators import booted
from tests.simulators.booted import GOLDEN, MACHINES, Boot
from tests.simulators.swtpm import Swtpm
from tests.simulators.tpm_manufacturer import EK_ECC_P384, EK_RSA, Manufacturer

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
        before = _clock(machine.tpm)
        machine.measure("/usr/bin/more", b"more")
        machine.reboot()
        assert machine.registers("sha256") == booted.registers(GOLDEN, "sha256")
        machine.reboot("other-kernel")
        assert machine.registers("sha256") == booted.registers("other-kernel", "sha256")
        after = _clock(machine.tpm)
        assert int(after["reset_count"]) == int(before["reset_count"]) + 2
        assert int(after["clock"]) >= int(before["clock"])
        assert after["safe"] == "yes"
        machine.reboot(orderly=False)
        assert _clock(machine.tpm)["safe"] == "no"


def test_sold_tpms_boot_and_keep_their_keys(folder: Path) -> None:
    with Manufacturer(folder / "ca").started(folder / "tpm") as tpm:
        machine = booted.of(tpm, Boot.of("seabios"))
        for bank in ("sha1", "sha256"):
            assert machine.registers(bank) == booted.registers("seabios", bank)
        assert tpm.handles() == [EK_RSA, EK_ECC_P384]


def test_registers_begin_with_the_locality_of_the_startup(folder: Path) -> None:
    boot = Boot.of()
    header = 32 + int.from_bytes(boot.event_log[28:32], "little")
    said = b"StartupLocality\0\3"
    digests = b"\x04\0" + bytes(20) + b"\x0b\0" + bytes(32)
    event = struct.pack("<III", 0, 3, 2) + digests + struct.pack("<I", len(said)) + said
    log = boot.event_log[:header] + event + boot.event_log[header:]
    with booted.started(folder, Boot(log, boot.ima)) as machine:
        for bank in ("sha1", "sha256"):
            values = machine.registers(bank).values
            assert values[0] == event_log.replay(parser.parse(log), bank).values[0]
            assert values[0] != booted.registers(GOLDEN, bank).values[0]


def _ima(machine: booted.Booted) -> bytes:
    return machine.registers("sha256").values[IMA_PCR]


def _clock(tpm: Swtpm) -> dict[str, str]:
    lines = (line.split(":") for line in tpm.tool("readclock").splitlines())
    return {name.strip(): value.strip() for name, value in lines}
