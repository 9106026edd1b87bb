"""Locks between processes, for state that only one of them may change."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def lock(path: Path) -> int:
    """Hold the lock file of `path`, `<path>.lock`; closing the descriptor, or the process's end, lets it go.

    A file of its own, because `path` may be replaced, or closed by somebody. Raises BlockingIOError while another
    holds it, OSError where it cannot be made.
    """
    descriptor = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
