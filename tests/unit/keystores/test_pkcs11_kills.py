"""kill -9 in the middle of rotations: the next start finds every id with a key, and no key that nothing names."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from tests.simulators.faulty_hsm import FaultyHsm
from tests.simulators.softhsm import SoftHsm
from tests.unit.keystores.faulty_token import accounted_for, configured, opened, private_keys, signs
from tests.unit.keystores.pkcs11_victim import IDS

ROUNDS = 6
KEYS_OF_A_SERVER = 8


def started(hsm: SoftHsm, faults: FaultyHsm, output: Path) -> subprocess.Popen[bytes]:
    configuration = msgspec.json.encode(configured(hsm, faults)).decode()
    command = [sys.executable, "-m", "tests.unit.keystores.pkcs11_victim", configuration]
    with output.open("wb") as written:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=written, start_new_session=True)


def given(output: Path) -> dict[str, str]:
    """The last key of each id that the victim was given. A line that its end cut off does not count."""
    return dict(line.split() for line in output.read_text().splitlines(keepends=True) if line.endswith("\n"))


async def check(hsm: SoftHsm, faults: FaultyHsm, output: Path) -> None:
    """What a start makes of what is there."""
    last = given(output)
    async with opened(hsm, faults) as manager:
        keys = {key.id: key for key in await manager.list()}
        for key in keys.values():
            await signs(key)
        assert keys.keys() >= last.keys()
        # The one whose answer was under way may be newer than what the victim told.
        newer = [key_id for key_id in last if keys[key_id].public_key.hex() != last[key_id]]
        assert len(newer) <= 1
        assert private_keys(hsm) == accounted_for(hsm)
        assert len(private_keys(hsm)) <= KEYS_OF_A_SERVER


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    "function",
    ["C_FindObjectsInit", "C_GenerateKeyPair", "C_GetAttributeValue", "C_SetAttributeValue", "C_DestroyObject"],
)
async def test_a_server_killed_between_two_steps(
    hsm: SoftHsm, faults: FaultyHsm, tmp_path: Path, function: str, after: bool
) -> None:
    output = tmp_path / "output"
    victim = started(hsm, faults, output)
    try:
        while len(given(output)) < len(IDS):
            assert victim.poll() is None
            time.sleep(0.02)  # noqa: ASYNC251 - nothing else runs in this loop
        death = faults.plant(function, "kill", "parent", after=after, times=1)
        death.wait()
        assert victim.wait(60) == -signal.SIGKILL
    finally:
        victim.kill()
        victim.wait()
    await check(hsm, faults, output)


async def test_a_server_killed_at_any_moment_again_and_again(hsm: SoftHsm, faults: FaultyHsm, tmp_path: Path) -> None:
    chance = random.Random(19)
    for number in range(ROUNDS):
        output = tmp_path / f"output-{number}"
        victim = started(hsm, faults, output)
        try:
            while not given(output):
                assert victim.poll() is None
                time.sleep(0.01)  # noqa: ASYNC251 - nothing else runs in this loop
            time.sleep(chance.uniform(0, 0.4))  # noqa: ASYNC251 - likewise
        finally:
            victim.kill()
            victim.wait()
        await check(hsm, faults, output)
