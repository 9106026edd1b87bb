from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from agent.storage import Bootstrapping, Storage, StoredState, Use
from identity.bundles import to_pem
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
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"svid": "x"}',
        b'{"svid": ["%"]}',
        b'{"bundle": [1]}',
        b"\xff\xfe",
        b'{"bootstrap_start_time": "soon"}',
    ],
)
def test_a_damaged_file_is_named_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "agent-data.json"
    path.write_bytes(content)
    with pytest.raises(Corrupt, match=r"agent-data\.json") as caught:
        Storage.open(str(tmp_path))
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == content


def test_other_fields_are_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "agent-data.json").write_text('{"svid": null, "bundle": ["cm9vdA=="], "to_come": {"a": 1}}')
    assert Storage.open(str(tmp_path)).state == StoredState(bundle=(b"root",))


def test_how_far_a_bootstrap_has_come_survives(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    storage.store_svid((b"leaf",), reattestable=True)
    begun = Bootstrapping(Use.REBOOTSTRAP, started=1_700_000_000, attempts=3)
    storage.store_bootstrapping(begun)
    storage.store_generation(7)
    assert Storage.open(str(tmp_path)).state == StoredState((b"leaf",), True, (), begun, 7)
    storage.distrust(begun)
    assert Storage.open(str(tmp_path)).state == StoredState((), False, (), begun, 7)


def test_the_file_is_the_one_that_gos_agent_writes(tmp_path: Path) -> None:
    pem = base64.b64encode(to_pem([b"leaf"]).encode()).decode()
    path = tmp_path / "agent-data.json"
    path.write_text(
        f'{{"svid":["{pem}"],"bundle":null,"reattestable":true,"bootstrap_use":2,'
        '"bootstrap_start_time":"2023-11-14T23:13:20.123456789+01:00","connection_attempts":4}'
    )
    storage = Storage.open(str(tmp_path))
    assert storage.state == StoredState(
        (b"leaf",), True, (), Bootstrapping(Use.REBOOTSTRAP, started=1_700_000_000.123456, attempts=4)
    )
    storage.store_bootstrapping(Bootstrapping(Use.REBOOTSTRAP))
    written = json.loads(path.read_text())
    assert (written["svid"], written["bootstrap_start_time"]) == ([pem], "0001-01-01T00:00:00Z")


def test_a_failed_write_keeps_the_old_state(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    storage = Storage.open(str(folder))
    (folder / "agent-data.json").mkdir()
    with pytest.raises(OSError, match=r"agent-data\.json"):
        storage.store_bundle((b"root",))
    assert storage.state == StoredState()
