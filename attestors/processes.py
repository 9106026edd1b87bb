"""Reading /proc (proc(5)) about a caller, such that a later process with the same pid is told from it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from operations.errors import NotFound, Refused
from transport.peer import Process

_CHUNK = 64 << 10
# Fields 3, 20 and 22 of the line, counted from 0 after the parenthesised name.
_STATE, _THREADS, _STARTED = 0, 17, 19
_ENDED = frozenset((b"Z", b"X"))


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
    return _stat(pid).started


@dataclass(frozen=True, slots=True)
class Owner:
    """The user and groups that a process has now, the effective ones."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def owner(pid: int) -> Owner:
    """Raises NotFound when the process is gone, Refused when it may not be read."""
    status = read(pid, "status")
    try:
        # Real, effective, saved and file system ids (proc(5)).
        uid, gid = int(_field(status, b"Uid")[1]), int(_field(status, b"Gid")[1])
        return Owner(uid, gid, tuple(int(each) for each in _field(status, b"Groups")))
    except (IndexError, ValueError) as error:
        raise Refused(f"/proc/{pid}/status cannot be understood") from error


def require_same(process: Process) -> None:
    """Raise NotFound or Refused unless the process that made the connection still runs, as the user that it was."""
    require_running(process)
    if not _belongs_to(process):
        require_owner(process, owner(process.pid))


def require_running(process: Process) -> None:
    """Raise NotFound or Refused unless the process that made the connection still runs."""
    stat = _stat(process.pid)
    if stat.started != process.started:
        raise Refused(f"pid {process.pid} belongs to another process than the one that connected")
    # Its pid is kept until its parent asks for it, while others may go on with its connection.
    if stat.ended:
        raise NotFound(f"process {process.pid} has ended")


def require_owner(process: Process, now: Owner) -> None:
    """Raise Refused when the process has become another user's since it connected.

    A program that is set-uid keeps the pid of the process that executes it, and a child of that process keeps the
    connection: neither may have the identities of the program's user.
    """
    if (now.uid, now.gid) != (process.uid, process.gid):
        raise Refused(
            f"process {process.pid} connected as user {process.uid}, group {process.gid} and now is of "
            f"user {now.uid}, group {now.gid}"
        )


def _belongs_to(process: Process) -> bool:
    """Cheaper than reading its status; but /proc/PID is root's when the process may not be dumped (proc(5))."""
    try:
        status = os.stat(path_of(process.pid, ""))  # noqa: PTH116 - for each call: Path costs more than the look
    except OSError as error:
        raise NotFound(f"process {process.pid} is gone") from error
    return (status.st_uid, status.st_gid) == (process.uid, process.gid)


@dataclass(frozen=True, slots=True)
class _Stat:
    state: bytes
    threads: int
    started: int

    @property
    def ended(self) -> bool:
        """A process whose first thread alone has ended goes on; its other threads are counted."""
        return self.state in _ENDED and self.threads <= 1


def _stat(pid: int) -> _Stat:
    # The name is in parentheses and may hold any byte, parentheses too.
    fields = read(pid, "stat").rpartition(b")")[2].split()
    try:
        return _Stat(fields[_STATE], int(fields[_THREADS]), int(fields[_STARTED]))
    except (IndexError, ValueError) as error:
        raise NotFound(f"/proc/{pid}/stat cannot be understood") from error


def _field(status: bytes, name: bytes) -> list[bytes]:
    """A line's values. No line begins with what a process calls itself: the kernel escapes its newlines."""
    return status.partition(b"\n" + name + b":")[2].partition(b"\n")[0].split()
