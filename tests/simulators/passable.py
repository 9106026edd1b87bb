"""Folders of tests that other users may pass through."""

from __future__ import annotations

from pathlib import Path

_PASS = 0o011


def passable(folder: Path) -> None:
    """pytest keeps its folders to the user that runs it; this opens those on the way to what is in `folder`."""
    for each in (folder, *folder.parents):
        mode = each.stat().st_mode
        if mode & _PASS != _PASS:
            each.chmod(mode | _PASS)
