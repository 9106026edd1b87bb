"""The further power of key managers that can seal: every backend that says it has it is held to it."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from keystores.disk import DiskKeyManager
from operations.errors import Corrupt, PermanentlyUnusable, TemporarilyUnavailable
from plugins.keymanager import KeyType, Sealing
from tests.contract.keymanager_backends import BACKENDS, SEALING


@pytest.mark.parametrize("name", sorted(BACKENDS))
async def test_who_seals_is_listed(name: str, tmp_path: Path) -> None:
    with BACKENDS[name](tmp_path) as backend:
        manager = await backend.open()
        assert isinstance(manager, Sealing) == (name in SEALING)
        await manager.close()


@pytest.mark.parametrize("name", SEALING)
async def test_a_labels_secret_stays_the_same_over_restarts_and_new_keys(name: str, tmp_path: Path) -> None:
    with BACKENDS[name](tmp_path) as backend:
        manager = await backend.open()
        assert isinstance(manager, Sealing)
        secret = await manager.sealing_secret("one")
        assert len(secret) == 32
        assert await manager.sealing_secret("two") != secret
        await manager.generate("agent-svid-A", KeyType.EC_P256)
        assert await manager.sealing_secret("one") == secret
        await manager.close()
        manager = await backend.open()
        assert isinstance(manager, Sealing)
        assert await manager.sealing_secret("one") == secret
        assert [key.id for key in await manager.list()] == ["agent-svid-A"]
        await manager.close()
        with pytest.raises(TemporarilyUnavailable):
            await manager.sealing_secret("one")


async def test_disk_seals_with_a_file_of_its_owner(tmp_path: Path) -> None:
    manager = await DiskKeyManager.open(tmp_path / "keys.json")
    other = await DiskKeyManager.open(tmp_path / "others.json")
    assert isinstance(manager, Sealing)
    assert await manager.sealing_secret("one") != await other.sealing_secret("one")
    path = tmp_path / "keys-sealing.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert await manager.sealing_secret("one") != path.read_bytes()
    path.write_bytes(b"short")
    with pytest.raises(Corrupt, match=r"keys-sealing\.key is damaged"):
        await manager.sealing_secret("one")
    path.unlink()
    path.mkdir()
    with pytest.raises(PermanentlyUnusable, match=r"keys-sealing\.key cannot be read"):
        await manager.sealing_secret("one")
    await manager.close()
    await other.close()
