"""`kill -9` after each step that makes or destroys a key: none is lost or left, and the token never fills."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from keystores.pkcs11.manager import AGENT_KEYS, Pkcs11KeyManager, load_agent
from plugins.keymanager import Hash, KeyType, Scheme
from tests.simulators.softhsm import SoftHsm
from tests.unit.keystores.tokens import configured, context, private_objects

ROOT = Path(__file__).parents[3]
VICTIM = (sys.executable, "-m", "tests.unit.keystores.disposal_victim")
MOST_STEPS = 60
DIGEST = hashlib.sha256(b"message").digest()


def victim(hsm: SoftHsm, last: int, grace: str = "0s") -> int:
    """Its status: that of SIGKILL, or 0 when it had less steps than that."""
    command = (*VICTIM, str(hsm.folder), str(last), grace)
    done = subprocess.run(command, cwd=ROOT, env=hsm.environment, timeout=120, capture_output=True, text=True)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


async def looked_after(hsm: SoftHsm) -> dict[str, bytes]:
    """Public keys by id, each of which has signed; every key in the token is named or retired."""
    manager = await load_agent(configured(hsm), context())
    assert isinstance(manager, Pkcs11KeyManager)
    found = await manager.inventory()
    assert all(record.named and record.label for record in found)
    for key in await manager.list():
        assert await key.sign(DIGEST, Scheme(Hash.SHA256))
    keys = {key.id: key.public_key for key in await manager.list()}
    await manager.close()
    return keys


@pytest.mark.timeout(900)
async def test_a_crash_after_any_step_costs_no_key_and_leaves_none(hsm: SoftHsm) -> None:
    """The same token goes from crash to crash, as in a crash loop."""
    manager = await load_agent(configured(hsm), context())
    kept = (await manager.generate("agent-svid-B", KeyType.EC_P256)).public_key
    await manager.close()
    last, status = 0, 1
    for last in range(1, MOST_STEPS):
        status = await asyncio.to_thread(victim, hsm, last)
        assert len(private_objects(hsm)) <= AGENT_KEYS
        keys = await looked_after(hsm)
        assert keys["agent-svid-B"] == kept
        assert set(keys) <= {"agent-svid-A", "agent-svid-B", "agent-svid-C"}
        if status == 0:
            break
    assert status == 0, "the victim has more steps than were looked at"
    assert last > 12
    listed = hsm.tool("--list-objects", "--type", "secrkey")
    assert listed.count("Secret Key Object") == 1


@pytest.mark.timeout(300)
async def test_a_crash_loop_fills_no_token(hsm: SoftHsm) -> None:
    """Killed at once after each key was made, before it could be written down, twelve times over; with a long grace."""
    for _ in range(12):
        assert await asyncio.to_thread(victim, hsm, 0, "24h") == -signal.SIGKILL
        assert len(private_objects(hsm)) <= AGENT_KEYS


async def test_the_grace_is_kept_over_restarts(hsm: SoftHsm, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 1_000_000
    monkeypatch.setattr("keystores.pkcs11.manager.time.time", lambda: clock)
    manager = await load_agent(configured(hsm, grace="1h"), context())
    for _ in range(2):
        await manager.generate("agent-svid-A", KeyType.EC_P256)
    await manager.close()
    for later, left in ((3599, 2), (3600, 1)):
        clock = 1_000_000 + later
        manager = await load_agent(configured(hsm, grace="1h"), context())
        assert isinstance(manager, Pkcs11KeyManager)
        async with asyncio.timeout(60):
            while len(found := await manager.inventory()) != left:  # noqa: ASYNC110 - nobody tells of a disposal
                await asyncio.sleep(0.05)
        retired = [each.dispose_at for each in found if each.retired_at is not None]
        assert retired == [1_000_000 + 3600] * (left - 1)
        await manager.close()
        assert len(private_objects(hsm)) == left
