"""A folder whose files change all at once, as those of Kubernetes' mounted secrets do. What is here blocks.

    NAME/svid.pem -> ..data/svid.pem
    NAME/..data   -> ..1f0c3a/
    NAME/..1f0c3a/svid.pem

A new set of files is written beside the old one; then `..data` is renamed over. Who reads, also after a power cut,
finds the old set or the new one, never a certificate without its key.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from operations.files import sync_directory

FOLDER_MODE = 0o755

_DATA = "..data"
_VERSION = "..version-"
_FRESH = "..fresh-"


@dataclass(frozen=True, slots=True)
class File:
    """`uid` and `gid` are -1 for this process's own."""

    content: bytes = field(repr=False)
    mode: int
    uid: int = -1
    gid: int = -1


def replace(folder: Path, files: Mapping[str, File]) -> None:
    """Make the folder hold these files and no others of ours.

    Raises OSError; then the old files are still in place. The folders stay this process's own, so that the owner of a
    file cannot put a link where the next one is written.
    """
    folder.mkdir(FOLDER_MODE, exist_ok=True)
    version = Path(tempfile.mkdtemp(prefix=_VERSION, dir=folder))
    try:
        for name, file in files.items():
            _write(version / name, file)
        version.chmod(FOLDER_MODE)
        sync_directory(version)
        _link(folder / _DATA, version.name)
    except BaseException:
        shutil.rmtree(version)
        raise
    for name in files:
        if _target(folder / name) != f"{_DATA}/{name}":
            _link(folder / name, f"{_DATA}/{name}")
    _tidy(folder, version.name, files)
    sync_directory(folder)


def remove(folder: Path) -> None:
    """Remove the folder and what is in it, if it is there. Raises OSError."""
    if folder.is_dir():
        shutil.rmtree(folder)
        sync_directory(folder.parent)


def _write(path: Path, file: File) -> None:
    # Nobody reads it before it has its owner and mode.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as opened:
        os.fchown(descriptor, file.uid, file.gid)
        os.fchmod(descriptor, file.mode)
        opened.write(file.content)
        opened.flush()
        os.fsync(descriptor)


def _link(path: Path, target: str) -> None:
    fresh = path.with_name(f"{_FRESH}{path.name}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(path)


def _target(path: Path) -> str:
    return os.readlink(path) if path.is_symlink() else ""  # noqa: PTH115 the text, not a path made of it


def _tidy(folder: Path, current: str, files: Mapping[str, File]) -> None:
    """Remove what earlier sets have left, also those that were never finished."""
    for path in folder.iterdir():
        if path.name.startswith(_VERSION) and path.name != current:
            shutil.rmtree(path)
        elif path.name.startswith(_FRESH) or (path.name not in files and _target(path).startswith(f"{_DATA}/")):
            path.unlink()
