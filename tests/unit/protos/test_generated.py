"""generated/ is what ci/generate makes of protos/ today."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[3]


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*.py*") if "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_generated_is_up_to_date(tmp_path: Path) -> None:
    subprocess.run([ROOT / "ci/generate", tmp_path / "generated"], check=True)
    fresh, committed = contents(tmp_path / "generated"), contents(ROOT / "generated")
    stale = sorted(name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name))
    assert not stale, "run ci/generate and commit the result"
