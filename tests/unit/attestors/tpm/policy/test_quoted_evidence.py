"""Evidence with a quote that tpm2-tools made, of a software TPM in a machine that booted."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from attestors.tpm.evidence import Evidence
from attestors.tpm.policy import judging, learning, loading, replaying
from operations.errors import InvalidArgument, Refused
from tests.simulators import booted

NONCE = bytes(range(32))


@pytest.fixture(scope="module")
def evidence() -> Iterator[Evidence]:
    with tempfile.TemporaryDirectory() as folder, booted.started(Path(folder)) as machine:
        tpm, made = machine.tpm, Path(folder)
        tpm.tool("createek", "-c", f"{made}/ek.ctx", "-G", "ecc", "-u", f"{made}/ek.pub")
        tpm.tool("flushcontext", "-t")
        tpm.tool(
            *("createak", "-C", f"{made}/ek.ctx", "-c", f"{made}/ak.ctx", "-u", f"{made}/ak.pub", "-f", "tss"),
            *("-G", "ecc", "-g", "sha256", "-s", "ecdsa"),
        )
        tpm.tool("flushcontext", "-t")
        tpm.tool(
            *("quote", "-c", f"{made}/ak.ctx", "-l", "sha256:0,1,2,3,4,5,6,7,8,9,10,11,12,13,14", "-q", NONCE.hex()),
            *("-m", f"{made}/quote", "-s", f"{made}/signature"),
        )
        values = machine.registers("sha256").values
        yield Evidence(
            taken_at=1_790_000_000,
            bank="sha256",
            pcrs={number: values[number] for number in range(15)},
            nonce=NONCE,
            quote=(made / "quote").read_bytes(),
            signature=(made / "signature").read_bytes(),
            ak_public=(made / "ak.pub").read_bytes(),
            event_log=machine.event_log.read_bytes(),
            ima=machine.ima.read_bytes(),
        )


def test_a_quote_is_verified_and_tells_the_firmware(evidence: Evidence, tmp_path: Path) -> None:
    machine = replaying.replay(evidence)
    assert machine.quoted
    assert machine.tpm_firmware > 0
    (tmp_path / "boot.hcl").write_text(learning.learn("golden", [machine]).policy)
    policies = loading.load(str(tmp_path / "boot.hcl"))
    assert policies.policies[0].tpm_firmware is not None
    assert judging.judge(policies, machine.observed(policies)).passed


@pytest.mark.parametrize("field", ["nonce", "quote", "signature", "ak_public"])
def test_a_quote_that_was_changed_is_refused(field: str, evidence: Evidence) -> None:
    value: bytes = getattr(evidence, field)
    for changed in (b"", value[:-1], value[:-1] + bytes([value[-1] ^ 1]), value + b"\0"):
        with pytest.raises((Refused, InvalidArgument)):
            replaying.replay(msgspec.structs.replace(evidence, **{field: changed}))


def test_values_that_were_not_quoted_are_refused(evidence: Evidence) -> None:
    others = {**evidence.pcrs, 13: b"\x01" * 32}
    with pytest.raises(Refused, match="not those that were quoted"):
        replaying.replay(msgspec.structs.replace(evidence, pcrs=others))
    with pytest.raises(Refused, match="the TPM quoted"):
        replaying.replay(msgspec.structs.replace(evidence, pcrs={**evidence.pcrs, 15: bytes(32)}))
