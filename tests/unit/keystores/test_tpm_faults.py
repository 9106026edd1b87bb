"""Each fault of a TPM at each call: a bounded wait, a typed error or none, no wrong signature, no key twice, recovery.

Recovery is without a restart, and within 25 s of the fault's end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from keystores import errors
from keystores.errors import KeyStoreError
from keystores.tpm.manager import TpmKeyManager
from plugins.keymanager import KeyType
from tests.simulators import faulty_tpm, swtpm
from tests.simulators.faulty_tpm import Fault, FaultyTpm, Trouble
from tests.unit.keystores.tpm_stores import SHORT, Parts, check_signs

BOUND = 30.0
RECOVERY = 25.0
FAULTS: dict[str, Fault] = {
    "TPM_RC_RETRY": 0x922,
    "TPM_RC_YIELDED": 0x908,
    "TPM_RC_TESTING": 0x90A,
    "TPM_RC_NV_RATE": 0x920,
    "TPM_RC_LOCKOUT": 0x921,
    "TPM_RC_FAILURE": 0x101,
    "TPM_RC_INITIALIZE": 0x100,
    "TPM_RC_OBJECT_MEMORY": 0x902,
    "TPM_RC_SESSION_MEMORY": 0x903,
    "TPM_RC_CONTEXT_GAP": 0x901,
    "TPM_RC_HANDLE": 0x18B,
    "TPM_RC_REFERENCE_S0": 0x918,
    "TPM_RC_AUTH_FAIL": 0x98E,
    "TPM_RC_INTEGRITY": 0x1DF,
    "TPM_RC_POLICY_FAIL": 0x99D,
    "a code of no standard": 0x7FF,
    **{trouble.value: trouble for trouble in Trouble},
}
PASSING = sorted(
    set(FAULTS)
    - {"TPM_RC_LOCKOUT", "TPM_RC_FAILURE", "TPM_RC_AUTH_FAIL", "TPM_RC_INTEGRITY"}
    - {"TPM_RC_POLICY_FAIL", "no answer"}
)
"""Faults that a call is none the worse for when they happen once."""
ERRORS = frozenset({"TemporarilyUnavailable", "Refused", "PermanentlyUnusable", "Unsupported"})


@dataclass
class Bench:
    """A key manager behind a transport that can fail, with a key that is in use and one that is not."""

    faulty: FaultyTpm
    parts: Parts
    manager: TpmKeyManager
    open: bool = True

    @classmethod
    async def made(cls, faulty: FaultyTpm, keys: Path) -> Bench:
        parts = Parts.of(faulty.tcti, keys, SHORT)
        bench = cls(faulty, parts, await parts.opened())
        await bench.manager.generate("x509-CA-A", KeyType.EC_P256)
        return bench

    async def reopened(self) -> None:
        """The call that lists and checks what there is."""
        await self.closed()
        self.parts = Parts.of(self.faulty.tcti, self.parts.folder.path, SHORT)
        self.manager = await self.parts.opened()
        self.open = True

    async def generated(self) -> None:
        await self.manager.generate("x509-CA-B", KeyType.EC_P256)

    async def signed(self) -> None:
        await check_signs(await self.manager.get("x509-CA-A"))

    async def sealed(self) -> None:
        await self.manager.sealing_secret("label")

    async def proven(self) -> None:
        assert (await self.manager.prove("x509-CA-A")).stands

    async def disposed(self) -> None:
        retired = [record for record in await self.manager.inventory() if record.retired_at is not None]
        if retired:
            await self.manager.dispose(retired[0].handle)

    async def closed(self) -> None:
        self.open = False
        await self.manager.close()

    def check_files(self) -> None:
        """One blob for each key, in use or retired, and none besides."""
        index = self.parts.folder.read_index()
        assert index is not None
        named = [*index.keys.values(), *(key.name for key in index.retired)]
        assert sorted(path.name for path in self.parts.folder.path.glob("key-*")) == sorted(
            f"key-{name}.json" for name in named
        )
        assert len(set(named)) == len(named)


CALLS: dict[str, Callable[[Bench], Awaitable[None]]] = {
    "sign": Bench.signed,
    "generate": Bench.generated,
    "open, list": Bench.reopened,
    "seal": Bench.sealed,
    "prove": Bench.proven,
    "dispose": Bench.disposed,
    "close": Bench.closed,
}


@dataclass(frozen=True)
class Cell:
    """How a call went: `outcome` is its error, "done", or "untouched" where the TPM was not asked; `why` it failed."""

    outcome: str
    why: str = ""


async def tried(bench: Bench, fault: Fault, call: Callable[[Bench], Awaitable[None]], *, once: bool) -> Cell:
    kept = {key.id: key.public_key for key in await bench.manager.list()}
    bench.faulty.fail(fault, once=once)
    began = time.monotonic()
    try:
        await asyncio.wait_for(call(bench), BOUND)
    except KeyStoreError as error:
        outcome = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
        if "\n" in str(error):
            return Cell(outcome, f"an error of several lines: {error}")
    except TimeoutError:
        return Cell("hangs", f"no end within {BOUND:g} s")
    except Exception as error:  # noqa: BLE001 - which is the fault that the table shows
        return Cell("failed", f"{type(error).__name__}: {error}")
    else:
        outcome = "done" if bench.faulty.struck else "untouched"
    took = time.monotonic() - began
    bench.faulty.mend()
    mended = time.monotonic()
    while (trouble := await _trouble(bench, kept)) is not None:
        if time.monotonic() - mended > RECOVERY:
            return Cell(outcome, f"no recovery after {took:.1f} s: {trouble}")
        await asyncio.sleep(0.1)
    return Cell(outcome)


async def _trouble(bench: Bench, kept: dict[str, bytes]) -> str | None:
    """What keeps everything from being as it was, or better."""
    try:
        if not bench.open:
            await bench.reopened()
        await bench.signed()
        await bench.generated()
        await bench.sealed()
    except KeyStoreError as error:
        return str(error)
    bench.check_files()
    now = {key.id: key.public_key for key in await bench.manager.list()}
    assert now["x509-CA-A"] == kept["x509-CA-A"]
    return None


Table = dict[str, dict[str, Cell]]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("once", [False, True], ids=["for as long as it lasts", "once"])
async def test_each_fault_at_each_call(tmp_path: Path, once: bool, capsys: pytest.CaptureFixture[str]) -> None:
    table: Table = {}
    with swtpm.started(tmp_path / "tpm") as tpm, faulty_tpm.before(tpm) as faulty:
        bench = await Bench.made(faulty, tmp_path / "keys")
        for name, fault in FAULTS.items():
            table[name] = {call_name: await tried(bench, fault, call, once=once) for call_name, call in CALLS.items()}
        await bench.manager.close()
        assert tpm.handles() == []
    with capsys.disabled():
        print(f"\n{_printed(table)}")
    assert [(fault, call, cell) for fault, row in table.items() for call, cell in row.items() if cell.why] == []
    if once:
        assert {name: table[name]["sign"].outcome for name in PASSING} == dict.fromkeys(PASSING, "done")
    else:
        assert {row["sign"].outcome for row in table.values()} <= ERRORS


def _printed(table: Table) -> str:
    lines = [f"{'':31}" + "".join(f"{call:24}" for call in CALLS)]
    for fault, row in table.items():
        lines.append(
            f"{fault:31}" + "".join(f"{'FAILED' if row[call].why else row[call].outcome:24}" for call in CALLS)
        )
    good = sum(not cell.why for row in table.values() for cell in row.values())
    return "\n".join([*lines, f"survived {good} of {len(FAULTS) * len(CALLS)} tried"])
