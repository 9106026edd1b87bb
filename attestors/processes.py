"""Reading /proc (proc(5)) about a caller, such that a later process with the same pid is told from it."""

from __future__ import annotations

import os

from operations.errors import NotFound, Refused
from transport.peer import Process

_CHUNK = 64 << 10
_STARTED = 19  # field 22 of the line, counted from 0 after the parenthesised name


def path_of(pid: int, name: str) -> str:
    return f"/proc/{pid}/{name}"


def read(pid: int, name: str) -> bytes:
    """One of the kernel's small files. Raises NotFound when the process is gone, Refused when it may not be read."""
    try:
        descriptor = os.open(path_of(pid, name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _read_all(descriptor)
        finally:
            os.close(descriptor)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise NotFound(f"process {pid} is gone") from error
    except OSError as error:
        raise Refused(f"cannot read /proc/{pid}/{name}: {error.strerror}") from error


def _read_all(descriptor: int) -> bytes:
    # The most groups that Linux allows make 720 kB.
    content = b""
    while chunk := os.read(descriptor, _CHUNK):
        content += chunk
    return content


def started(pid: int) -> int:
    """When the process began, in clock ticks after boot. Raises NotFound."""
    # The name is in parentheses and may hold any byte, parentheses too.
    fields = read(pid, "stat").rpartition(b")")[2].split()
    try:
        return int(fields[_STARTED])
    except (IndexError, ValueError) as error:
        raise NotFound(f"/proc/{pid}/stat cannot be understood") from error


def require_same(process: Process) -> None:
    """Raise NotFound or Refused unless the process that made the connection still has its pid."""
    if started(process.pid) != process.started:
        raise Refused(f"pid {process.pid} belongs to another process than the one that connected")
