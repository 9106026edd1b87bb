"""The machines that booted: what their logs say is what their registers and their makers know."""

from __future__ import annotations

from pathlib import Path

import pytest

from attestors.tpm.event_log import facts, parser, replay
from attestors.tpm.event_log.model import BootFacts
from attestors.tpm.pcrs import IMA_PCR, PcrValues
from operations.errors import Refused
from tests.simulators.booted import GOLDEN, MACHINES, Boot, registers

ALL = sorted(folder.name for folder in MACHINES.iterdir() if (folder / "event_log").exists())
SECURE = ("command-line", GOLDEN, "other-kernel")
COMMAND_LINE = "/vmlinuz console=ttyS0 panic=-1 root=/dev/vda2 ima_policy=tcb"


def _facts(machine: str) -> BootFacts:
    return facts.facts(parser.parse(Boot.of(machine).event_log), "sha256")


@pytest.mark.parametrize("bank", ["sha1", "sha256"])
@pytest.mark.parametrize("machine", ALL)
def test_event_logs_replay_to_the_registers(machine: str, bank: str) -> None:
    log, quoted = parser.parse(Boot.of(machine).event_log), registers(machine, bank)
    assert log.banks == ("sha1", "sha256")
    replay.verify(log, quoted)
    found = replay.replay(log, bank).values
    assert IMA_PCR not in found
    assert {number: quoted.values[number] for number in found} == found
    for number in found:
        with pytest.raises(Refused, match=rf"PCR {number}\b"):
            replay.verify(log, PcrValues(bank, {**quoted.values, number: bytes(len(found[number]))}))


@pytest.mark.parametrize("machine", SECURE)
def test_secure_boots_are_told_apart_by_what_differs(machine: str) -> None:
    found, golden = _facts(machine), _facts(GOLDEN)
    assert found.secure_boot is True
    assert (found.variables, found.authorities) == (golden.variables, golden.authorities)
    assert found.command_lines == (COMMAND_LINE + (" single ima_template=ima-ng" if machine == "command-line" else ""),)
    digests, before = ([image.digest for image in value.images] for value in (found, golden))
    assert digests[:2] == before[:2]
    assert (digests[2:] == before[2:]) == (machine != "other-kernel")


def test_a_machine_without_secure_boot_says_so() -> None:
    found, golden = _facts("insecure"), _facts(GOLDEN)
    assert found.secure_boot is False
    assert not any(found.variables[name] for name in ("PK", "KEK", "db", "dbx"))
    assert found.authorities == ()
    # The same shim, loader and kernel all the same.
    assert [image.digest for image in found.images] == [image.digest for image in golden.images][:3]


def test_what_is_committed_stays_small() -> None:
    assert sum(path.stat().st_size for path in Path(MACHINES).rglob("*") if path.is_file()) < 1 << 20
