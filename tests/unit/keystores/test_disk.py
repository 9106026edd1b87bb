from __future__ import annotations

from pathlib import Path

import pytest

from keystores.disk import AgentConfiguration, DiskKeyManager, ServerConfiguration, load_agent, load_server
from operations import logs
from operations.errors import Corrupt, PermanentlyUnusable, Refused
from plugins.catalog import PluginContext
from plugins.keymanager import InProcessKey, KeyType

CONTEXT = PluginContext(trust_domain="example.org", data_dir=None, log=logs.get("disk"))


async def test_the_file_is_private_and_named_by_the_configuration(tmp_path: Path) -> None:
    server = await load_server(ServerConfiguration(keys_path=str(tmp_path / "server.json")), CONTEXT)
    agent = await load_agent(AgentConfiguration(directory=str(tmp_path)), CONTEXT)
    for manager, path in ((server, tmp_path / "server.json"), (agent, tmp_path / "keys.json")):
        assert not path.exists()
        key = await manager.generate("key", KeyType.EC_P256)
        assert path.stat().st_mode & 0o777 == 0o600
        assert isinstance(key, InProcessKey)
        assert key.private_key not in path.read_bytes()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"keys": {"a": "AAAA"}}',
        b'{"keys": {"a": 1}}',
        b'{"namespace": "a", "keys": {}}',
        b"\xff\xfe",
    ],
)
async def test_a_damaged_file_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(content)
    with pytest.raises(Corrupt) as raised:
        await DiskKeyManager.open(path)
    assert str(path) in str(raised.value)
    assert "restore it from a backup" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert path.read_bytes() == content


async def test_a_key_that_cannot_be_stored_is_not_handed_out(tmp_path: Path) -> None:
    manager = await DiskKeyManager.open(tmp_path / "absent" / "keys.json")
    with pytest.raises(PermanentlyUnusable, match="cannot be written"):
        await manager.generate("key", KeyType.EC_P256)
    assert list(await manager.list()) == []


async def test_a_second_process_may_not_use_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    first = await DiskKeyManager.open(path)
    with pytest.raises(Refused, match="another process uses the key file"):
        await DiskKeyManager.open(path)
    await first.generate("key", KeyType.EC_P256)
    await first.close()
    again = await DiskKeyManager.open(path)
    assert [key.id for key in await again.list()] == ["key"]
    await again.close()
