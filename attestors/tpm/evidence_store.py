"""The latest evidence of each node, and the latest that was refused, as files for `spire-server tpm policy`."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Final

from attestors.tpm import evidence
from attestors.tpm.evidence import Evidence
from operations.errors import ConfigurationError

_SUFFIX: Final = ".json"
_REFUSED: Final = ".refused.json"


class EvidenceStore:
    """In a folder that is this store's own: the files that were written longest ago go when they are too many.

    All of it blocks on the disk, and may be called from any thread.
    """

    def __init__(self, folder: str, *, most: int, size: int) -> None:
        """`size` is in bytes, of all files. Raises ConfigurationError."""
        self._folder = Path(folder)
        self._most = most
        self._size = size
        self._lock = threading.Lock()
        if not self._folder.is_dir():
            raise ConfigurationError(f"evidence_path {folder} is no folder: make it, with mode 0700")
        try:
            found = [(path, path.stat()) for path in self._folder.glob(f"*{_SUFFIX}")]
        except OSError as error:
            raise ConfigurationError(f"cannot read the evidence folder: {error.strerror}", file=folder) from error
        found.sort(key=lambda each: each[1].st_mtime_ns)
        self._files = OrderedDict((path.name, status.st_size) for path, status in found)

    def latest(self, name: str) -> Evidence | None:
        """What the node of that name (its EK's hash) last sent and was admitted with; None where it cannot be read."""
        try:
            return evidence.read(self._folder / f"{name}{_SUFFIX}")
        except ConfigurationError:
            return None

    def keep(self, name: str, found: Evidence, *, refused: bool) -> Path:
        """Replace the node's file, or the one of its latest refusal. Raises ConfigurationError, OSError."""
        path = self._folder / f"{name}{_REFUSED if refused else _SUFFIX}"
        evidence.write(path, found)
        size = path.stat().st_size
        with self._lock:
            self._files[path.name] = size
            self._files.move_to_end(path.name)
            while len(self._files) > 1 and (len(self._files) > self._most or sum(self._files.values()) > self._size):
                oldest, _ = self._files.popitem(last=False)
                (self._folder / oldest).unlink(missing_ok=True)
        return path
