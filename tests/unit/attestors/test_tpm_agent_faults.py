"""Each fault of a TPM at each command of an attestation: a true proof or a typed error, and the next one succeeds."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from attestors.tpm.agent import Configuration, TpmAttestor
from attestors.tpm.choice import FILE
from attestors.tpm.messages import Activate, Hello, Proof, decode, encode
from attestors.tpm.verification import certify, credential, quote
from keystores.errors import KeyStoreError
from keystores.tpm import public_area
from keystores.tpm.blobs import Folder
from keystores.tpm.manager import AGENT_KEYS, Policy, TpmKeyManager
from keystores.tpm.messages import Place
from keystores.tpm.worker import Worker
from operations import logs
from operations.errors import SpireError
from plugins.keymanager import Key, KeyType
from tests.simulators import faulty_tpm
from tests.simulators.faulty_tpm import Fault, FaultyTpm, Trouble
from tests.simulators.tpm_manufacturer import Manufacturer
from tests.unit.keystores.tpm_stores import SHORT

LOG: Final = logs.get("test")
BOUND, RECOVERY = 60.0, 25.0
PCRS: Final = tuple(range(12))
FAULTS: Final[dict[str, Fault]] = {
    "TPM_RC_RETRY": 0x922,
    "TPM_RC_LOCKOUT": 0x921,
    "TPM_RC_OBJECT_MEMORY": 0x902,
    "TPM_RC_SESSION_MEMORY": 0x903,
    "TPM_RC_INITIALIZE": 0x100,
    "TPM_RC_HANDLE": 0x18B,
    "TPM_RC_POLICY_FAIL": 0x99D,
    "TPM_RC_AUTH_FAIL": 0x98E,
    "a code of no standard": 0x7FF,
    **{trouble.value: trouble for trouble in Trouble if trouble not in {Trouble.HANG, Trouble.REFUSE}},
}
PASSING: Final = frozenset({"TPM_RC_RETRY", "TPM_RC_INITIALIZE", "cut before the response", "TPM reset"})
COMMANDS: Final = {
    "GetCapability": 0x17A,
    "NV_ReadPublic": 0x169,
    "NV_Read": 0x14E,
    "ReadPublic": 0x173,
    "StartAuthSession": 0x176,
    "PolicySecret": 0x151,
    "CreatePrimary": 0x131,
    "ContextSave": 0x162,
    "ContextLoad": 0x161,
    "Load": 0x157,
    "ActivateCredential": 0x147,
    "PCR_Read": 0x17E,
    "Quote": 0x158,
    "Certify": 0x148,
    "FlushContext": 0x165,
}


@dataclass
class Bench:
    """An agent's key manager and attestor on one worker, behind a transport that can fail."""

    faulty: FaultyTpm
    attestor: TpmAttestor
    keys: TpmKeyManager
    key: Key

    @classmethod
    async def made(cls, faulty: FaultyTpm, folder: Path) -> Bench:
        worker = Worker(Place(tcti=faulty.tcti), SHORT)
        policy = Policy(limit=AGENT_KEYS, grace=3600.0, pcrs=None)
        keys = await TpmKeyManager.open(worker, Folder(folder / "keys"), policy, LOG)
        configuration = Configuration(tcti=faulty.tcti, ek="ecc")
        attestor = TpmAttestor(configuration, Place(tcti=faulty.tcti), b"", folder / FILE, LOG)
        return cls(faulty, attestor, keys, await keys.generate("agent-svid-A", KeyType.EC_P256))

    async def attest(self) -> None:
        """Raises AssertionError for a proof that is not true."""
        conversation = await self.attestor.begin_with(self.keys, self.key)
        hello = decode(Hello, conversation.payload, 1 << 20)
        endorsement = public_area.parse(hello.ek_public)
        signer = quote.attestation_key(hello.ak_public, endorsement)
        hidden, seed = credential.make(endorsement, signer.name, b"s" * 32)
        asked = Activate(credential=hidden, secret=seed, nonce=b"n" * 32, bank="sha256", pcrs=PCRS)
        proof = decode(Proof, await conversation.respond(encode(asked)), 1 << 20)
        assert proof.secret == b"s" * 32
        quote.verify(signer, proof, asked)
        assert proof.certification is not None
        assert certify.verify(signer, proof.certification, b"n" * 32) == self.key.public_key


async def tried(bench: Bench, fault: Fault, code: int) -> tuple[str, str]:
    """What came of the attestation in which the fault happened once, and what is wrong with that."""
    bench.faulty.fail(fault, code, once=True)
    try:
        await asyncio.wait_for(bench.attest(), BOUND)
    except KeyStoreError as error:
        outcome, why = type(error).__name__, "several lines" if "\n" in str(error) else ""
    except TimeoutError:
        return "hangs", f"no end within {BOUND:g} s"
    except SpireError as error:
        return "a lie", f"a proof that a server refuses: {error}"
    else:
        outcome, why = ("done" if bench.faulty.struck else "untouched"), ""
    bench.faulty.mend()
    mended = time.monotonic()
    while True:
        try:
            await bench.attest()
        except KeyStoreError as error:
            if time.monotonic() - mended > RECOVERY:
                return outcome, f"no recovery: {error}"
            await asyncio.sleep(0.05)
        else:
            return outcome, why


@pytest.mark.timeout(900)
async def test_each_fault_at_each_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    maker = Manufacturer(tmp_path / "maker")
    table: dict[tuple[str, str], tuple[str, str]] = {}
    with maker.started(tmp_path / "tpm", persistent=False) as tpm, faulty_tpm.before(tpm) as faulty:
        before = tpm.handles()
        bench = await Bench.made(faulty, tmp_path)
        for name, fault in FAULTS.items():
            for command, code in COMMANDS.items():
                table[name, command] = await tried(bench, fault, code)
        await bench.attestor.close()
        await bench.keys.close()
        assert tpm.handles() == before
    with capsys.disabled():
        good = sum(not why for _, why in table.values())
        done = sum(outcome == "done" for outcome, _ in table.values())
        print(f"\nfaults in an attestation: survived {good} of {len(table)} tried, {done} of them unnoticed")
    assert {cell: why for cell, (_, why) in table.items() if why} == {}
    noticed = {cell: outcome for cell, (outcome, _) in table.items() if outcome not in {"done", "untouched"}}
    assert {cell: outcome for cell, outcome in noticed.items() if cell[0] in PASSING} == {}
