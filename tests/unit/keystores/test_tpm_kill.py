"""kill -9 at any moment: whatever was said to be there is there."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from tests.simulators import swtpm, tpm_resource_manager
from tests.unit.keystores.tpm_stores import check_signs, opened

KILLS = 12


async def test_a_kill_at_any_moment_loses_no_key(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    known: dict[str, str] = {}
    with swtpm.started(tmp_path / "tpm") as tpm, tpm_resource_manager.before(tpm) as kernel:
        for number in range(KILLS):
            said = victim(kernel.client(f"victim-{number}"), keys, 0.003 * number)
            manager = await opened(kernel.client(f"heir-{number}"), keys)
            there = {key.id: key.public_key.hex() for key in await manager.list()}
            # The last one may have been made and not have been said.
            lost = {key_id for key_id, public in {**known, **said}.items() if there.get(key_id) != public}
            assert len(lost) <= 1
            assert set(there) >= set(known) | set(said)
            for key in await manager.list():
                await check_signs(key)
            assert len(await manager.inventory()) <= 8
            known = there
            await manager.close()


def victim(tcti: str, keys: Path, delay: float) -> dict[str, str]:
    """Kill it a moment after its first keys. Returns what it said of each id last."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.unit.keystores.tpm_victim", tcti, str(keys)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(4)]
    time.sleep(delay)
    process.kill()
    rest, _ = process.communicate(timeout=60)
    said = [line.split() for line in "".join([*lines, rest]).splitlines()]
    return {words[0]: words[1] for words in said if len(words) == 2}
