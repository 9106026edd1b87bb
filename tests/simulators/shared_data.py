"""Data from real machines, which stand beside the repository where they are at hand. Tests use them then."""

from __future__ import annotations

from pathlib import Path


def shared_data(name: str) -> list[Path]:
    """The files in shared/data/`name`, of the nearest folder above the tests that has one; none where there is none."""
    for above in Path(__file__).parents:
        folder = above / "shared" / "data" / name
        if folder.is_dir():
            return sorted(folder.iterdir())
        if folder.is_file():
            return [folder]
    return []
