"""Evidence of machines that never were: a made event log and IMA list, and the registers that both come to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from attestors.tpm.evidence import Evidence
from attestors.tpm.pcrs import IMA_PCR
from tests.simulators.event_log import Boot, booted
from tests.simulators.ima_list import ImaList

FILES = {"/usr/bin/init": b"init", "/usr/bin/sh": b"sh"}


def taken(boot: Boot | None = None, files: Mapping[str, bytes] | None = None, *, ek: str = "00") -> Evidence:
    """What the machine would have sent, without a quote."""
    log = booted(boot)
    quoted = log.pcrs()
    ima = ImaList().aggregate(quoted)
    for path, content in (FILES if files is None else files).items():
        ima.file(path, content)
    name = hashlib.sha256(ek.encode()).hexdigest()
    return Evidence(
        taken_at=1_790_000_000,
        agent_id=f"spiffe://example.org/spire/agent/tpm/{name}",
        selectors=(f"ek:{name}", "manufacturer:IFX", "model:SLB9670"),
        bank="sha256",
        pcrs={**quoted.values, IMA_PCR: ima.value},
        tpm_firmware=0x00070055_0011CB00,
        event_log=log.build(),
        ima=ima.data,
    )
