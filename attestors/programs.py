"""The program that a process runs: the path that it is called by, and the digest of its file."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

from attestors import processes
from operations.errors import Refused

_CHUNK = 1 << 20


def describe(pid: int, size_limit: int, given_up: threading.Event) -> list[tuple[str, str]]:
    """Selectors `path` and, unless the limit is negative, `sha256`, both of one file, whatever is executed meanwhile.

    Blocks, as long as the program's file system does. Raises Refused when the program may not be read, is larger than
    a limit that is not 0, or when it is given up.
    """
    try:
        # The magic link itself, never what its text names, where another file may be.
        descriptor = os.open(processes.path_of(pid, "exe"), os.O_PATH | os.O_CLOEXEC)
        try:
            held = f"/proc/self/fd/{descriptor}"
            found = [("path", str(Path(held).readlink()))]
            if size_limit >= 0:
                found.append(("sha256", _sha256(held, pid, size_limit, given_up)))
            return found
        finally:
            os.close(descriptor)
    except OSError as error:
        raise Refused(f"cannot read the program of process {pid}: {error.strerror}") from error


def _sha256(path: str, pid: int, limit: int, given_up: threading.Event) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:  # noqa: PTH123 - a magic link
        size = os.fstat(file.fileno()).st_size
        if limit and size > limit:
            raise Refused(f"the program of process {pid} exceeds workload_size_limit ({size} > {limit} bytes)")
        while chunk := file.read(_CHUNK):
            if given_up.is_set():
                raise Refused(f"the program of process {pid} took too long to read: set workload_size_limit")
            digest.update(chunk)
    return digest.hexdigest()
