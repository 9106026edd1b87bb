"""Evidence of machines: of made ones, whose registers are those that log and list come to, and of those that booted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from attestors.tpm.evidence import Evidence
from attestors.tpm.ima.records import hashed, scan
from attestors.tpm.pcrs import IMA_PCR, extend, initial
from tests.simulators import booted as machines
from tests.simulators import ima_lists
from tests.simulators.event_log import Boot, booted

FILES = {"/usr/bin/init": b"init", "/usr/bin/sh": b"sh"}
TAKEN_AT = 1_790_000_000
FIRMWARE = 0x00070055_0011CB00


def taken(boot: Boot | None = None, files: Mapping[str, bytes] | None = None, *, ek: str = "00") -> Evidence:
    """What a made machine would have sent, without a quote."""
    log = booted(boot)
    quoted = log.pcrs()
    aggregate = hashlib.sha256(b"".join(quoted.values[number] for number in range(10))).digest()
    ima = ima_lists.entry("boot_aggregate", aggregate)
    for path, content in (FILES if files is None else files).items():
        ima += ima_lists.entry(path, hashlib.sha256(content).digest())
    extended = (hashlib.sha256(hashed(record)).digest() for record in scan(ima))
    return Evidence(
        taken_at=TAKEN_AT,
        agent_id=f"spiffe://example.org/spire/agent/tpm/{_name(ek)}",
        selectors=(f"ek:{_name(ek)}", "manufacturer:IFX", "model:SLB9670"),
        bank="sha256",
        pcrs={**quoted.values, IMA_PCR: extend("sha256", initial("sha256", IMA_PCR), extended)},
        tpm_firmware=FIRMWARE,
        event_log=log.build(),
        ima=ima,
    )


def told(machine: str, *, later: bool = False) -> Evidence:
    """What a machine of tests/machines had, without a quote."""
    boot = machines.Boot.of(machine, later=later)
    return Evidence(
        taken_at=TAKEN_AT,
        selectors=(f"ek:{_name(machine)}", "manufacturer:IBM"),
        bank="sha256",
        pcrs=dict(machines.registers(machine, "sha256", later=later).values),
        event_log=boot.event_log,
        ima=boot.ima,
    )


def _name(ek: str) -> str:
    return hashlib.sha256(ek.encode()).hexdigest()
