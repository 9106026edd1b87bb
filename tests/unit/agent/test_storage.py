from __future__ import annotations

from pathlib import Path

import pytest

from agent.storage import Storage, StoredState
from operations.errors import Corrupt


def test_state_survives(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    assert storage.state == StoredState()
    storage.store_svid((b"leaf", b"intermediate"), reattestable=True)
    storage.store_bundle((b"root",))
    assert Storage.open(str(tmp_path)).state == StoredState((b"leaf", b"intermediate"), True, (b"root",))
    storage.delete_svid()
    assert Storage.open(str(tmp_path)).state == StoredState((), False, (b"root",))


def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    Storage.open(str(tmp_path)).store_bundle((b"root",))
    assert (tmp_path / "agent-data.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"svid": "x"}', b'{"svid": ["%"]}', b'{"bundle": [1]}', b"\xff\xfe"]
)
def test_a_damaged_file_is_named_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "agent-data.json"
    path.write_bytes(content)
    with pytest.raises(Corrupt, match=r"agent-data\.json") as caught:
        Storage.open(str(tmp_path))
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == content


def test_other_fields_are_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "agent-data.json").write_text('{"svid": null, "bundle": ["cm9vdA=="], "bootstrap_use": 2}')
    assert Storage.open(str(tmp_path)).state == StoredState(bundle=(b"root",))


def test_a_failed_write_keeps_the_old_state(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    storage = Storage.open(str(folder))
    (folder / "agent-data.json").mkdir()
    with pytest.raises(OSError, match=r"agent-data\.json"):
        storage.store_bundle((b"root",))
    assert storage.state == StoredState()
