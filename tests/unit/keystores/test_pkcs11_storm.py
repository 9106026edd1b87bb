"""Faults by chance under sixteen callers: every call ends, no wrong signature gets out, and afterwards all is well.

For 20 s, or for SPIRE_SOAK_SECONDS.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Sequence
from itertools import count

import pytest

from keystores.errors import KeyStoreError, PermanentlyUnusable
from keystores.pkcs11 import device, manager
from plugins.keymanager import KeyManager, KeyType
from tests.simulators import faulty_hsm
from tests.simulators.faulty_hsm import IN_A_SESSION, FaultyHsm
from tests.simulators.softhsm import SoftHsm
from tests.unit.keystores.faulty_token import PATIENCE, accounted_for, load, opened, private_keys, recovers, signs

SECONDS = float(os.environ.get("SPIRE_SOAK_SECONDS", "20"))
CALLERS = 16
SEED = 20
DEADLINE = 3.0

FUNCTIONS = (*IN_A_SESSION, "C_OpenSession", "C_GetSlotList", "C_GetTokenInfo", "C_Initialize", "C_CloseSession")
WHERE_IT_MATTERS = ("C_Sign", "C_SignInit", "C_GenerateKeyPair", "C_FindObjects", "C_OpenSession", "C_DestroyObject")
CODES = (
    faulty_hsm.CKR_FUNCTION_FAILED,
    faulty_hsm.CKR_DEVICE_ERROR,
    faulty_hsm.CKR_DEVICE_REMOVED,
    faulty_hsm.CKR_SESSION_CLOSED,
    faulty_hsm.CKR_SESSION_HANDLE_INVALID,
    faulty_hsm.CKR_TOKEN_NOT_PRESENT,
    faulty_hsm.CKR_CRYPTOKI_NOT_INITIALIZED,
)
PASSING: Sequence[tuple[str, Sequence[str | int], float]] = (
    *(("return", (code,), 4) for code in CODES),
    ("forget", (), 6),
    ("hang", (), 2),
    ("crash", ("segv",), 3),
    ("crash", ("abort",), 2),
    ("sleep", (30_000,), 4),
)
FINAL = ("does not verify", "neither r", "no longer has")
"""The device lied; or a key that was replaced has been disposed of under its last user."""
LIES = ("wrong", "truncated", "empty", "repeated", "der")


async def test_no_fault_does_lasting_harm(hsm: SoftHsm, faults: FaultyHsm, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((device, "PATIENCE"), (device, "PROBE_PATIENCE"), (manager, "GENERATION_PATIENCE")):
        monkeypatch.setattr(module, name, DEADLINE)
    results: Counter[str] = Counter()
    async with opened(hsm, faults, sessions=2, grace="1s") as store:
        for number in range(4):
            await store.generate(f"key-{number}", KeyType.EC_P256 if number else KeyType.RSA_2048)
        end = asyncio.get_running_loop().time() + SECONDS
        storm = asyncio.create_task(_storm(faults, random.Random(SEED), end))
        await asyncio.gather(*(_call_until(store, caller, end, results) for caller in range(CALLERS)))
        await storm
        faults.lift_all()
        for key in await store.list():
            await recovers(key)
    print(dict(results))  # for who runs a long one
    assert not any(result.startswith("unexpected") for result in results)
    assert results["success"] > CALLERS
    assert sum(results.values()) > results["success"], "the faults were met"
    again = await load(hsm, faults)
    try:
        assert {key.id for key in await again.list()} == {f"key-{number}" for number in range(4)}
        for key in await again.list():
            await signs(key, 3)
        assert private_keys(hsm) == accounted_for(hsm)
        assert len(private_keys(hsm)) <= 8
    finally:
        await again.close()


async def _storm(faults: FaultyHsm, chance: random.Random, end: float) -> None:
    """One fault after the other, some together, each for a moment."""
    while asyncio.get_running_loop().time() < end:
        match chance.randrange(10):
            case 0:
                with faults.token_removed():
                    await asyncio.sleep(chance.uniform(0.1, 1.5))
            case 1 | 2:
                with faults.planted("C_Sign", chance.choice(LIES), times=chance.randint(1, 3)):
                    await asyncio.sleep(chance.uniform(0.05, 0.3))
            case 3:
                with faults.planted("C_SignInit", "swap", times=2):
                    await asyncio.sleep(chance.uniform(0.05, 0.3))
            case _:
                action, arguments, _ = chance.choices(PASSING, [weight for *_, weight in PASSING])[0]
                function = chance.choice((*FUNCTIONS, *WHERE_IT_MATTERS, *WHERE_IT_MATTERS))
                after = action != "sleep" and chance.random() < 0.3
                times = chance.randint(1, 4)
                with faults.planted(function, action, *arguments, after=after, skip=chance.randint(0, 5), times=times):
                    await asyncio.sleep(chance.uniform(0.05, 0.5))
        await asyncio.sleep(chance.uniform(0, 0.5))


async def _call_until(store: KeyManager, caller: int, end: float, results: Counter[str]) -> None:
    """The first caller rotates, the others sign; a typed error is an answer, a wrong signature or silence is not."""
    chance = random.Random(caller)
    for number in count():
        if asyncio.get_running_loop().time() > end:
            return
        key_id = f"key-{chance.randrange(4)}"
        try:
            async with asyncio.timeout(PATIENCE):
                if caller == 0 and number % 5 == 0:
                    await store.generate(key_id, KeyType.EC_P256)
                else:
                    await signs(await store.get(key_id), chance.choice((1, 1, 1, 12)))
            results["success"] += 1
        except PermanentlyUnusable as error:
            results[next((reason for reason in FINAL if reason in str(error)), f"unexpected: {error}")] += 1
        except KeyStoreError as error:
            results[type(error).__name__] += 1
            await asyncio.sleep(0.05)
