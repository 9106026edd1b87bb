"""Reading /proc (proc(5)) about a caller, such that a later process with the same pid is told from it."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from operations.errors import ConfigurationError, NotFound, Refused
from transport.peer import PidFd, Process

_CHUNK = 64 << 10
# Fields 3, 20 and 22 of the line, counted from 0 after the parenthesised name.
_STATE, _THREADS, _STARTED = 0, 17, 19
_ENDED = frozenset((b"Z", b"X"))
_PIDS = 1 << 31
# Linux allows 65,536 groups, which anybody may have in a user namespace of their own.
_LARGEST_STATUS = 128 << 10
_IDS = 0xFFFFFFFF


def require_own_proc() -> None:
    """Raise ConfigurationError where /proc tells of the processes of another PID namespace than ours, or of none.

    Pids are those of the reader's namespace, and files of /proc those of the namespace that it was mounted in.
    """
    try:
        own = Path("/proc/self").readlink() == Path(str(os.getpid()))
    except OSError:
        own = False
    if not own:
        raise ConfigurationError(
            "workloads cannot be told: /proc is not that of our own PID namespace; mount one (mount -t proc proc "
            "/proc), or share the host's PID namespace"
        )


def path_of(pid: int, name: str) -> str:
    return f"/proc/{pid}/{name}"


def read(pid: int, name: str, *, limit: int | None = None) -> bytes:
    """One of the kernel's small files; with a limit, in bytes, one that a process can make large.

    Raises NotFound when the process is gone, Refused when the file may not be read or exceeds the limit.
    """
    try:
        descriptor = os.open(path_of(pid, name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            content = _read_all(descriptor, limit)
        finally:
            os.close(descriptor)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise NotFound(f"process {pid} is gone") from error
    except OSError as error:
        raise Refused(f"cannot read /proc/{pid}/{name}: {error.strerror}") from error
    if limit is not None and len(content) > limit:
        raise Refused(f"/proc/{pid}/{name} is larger than {limit} bytes")
    return content


def _read_all(descriptor: int, limit: int | None) -> bytes:
    """All of it, or somewhat more than the limit."""
    content = bytearray()
    while chunk := os.read(descriptor, _CHUNK):
        content += chunk
        if limit is not None and len(content) > limit:
            break
    return bytes(content)


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
    """Raises NotFound when the process is gone, Refused when it may not be read or is in too many groups."""
    status = read(pid, "status", limit=_LARGEST_STATUS)
    try:
        # Real, effective, saved and file system ids (proc(5)).
        uid, gid = int(_field(status, b"Uid")[1]), int(_field(status, b"Gid")[1])
        return Owner(uid, gid, tuple(int(each) for each in _field(status, b"Groups")))
    except (IndexError, ValueError) as error:
        raise Refused(f"/proc/{pid}/status cannot be understood") from error


def foreign_id(kind: str) -> int | None:
    """The `uid` or `gid` that all those have here whom our user namespace does not know; None where it knows all.

    It is somebody's own as well: user_namespaces(7), "Unmapped user and group IDs".
    """
    try:
        known = sum(int(line.split()[2]) for line in Path(f"/proc/self/{kind}_map").read_text().splitlines())
        return None if known >= _IDS else int(Path(f"/proc/sys/kernel/overflow{kind}").read_text())
    except FileNotFoundError:  # a kernel without user namespaces
        return None


@contextmanager
def pinned(pid: int) -> Generator[Process, None, None]:
    """The process with a pid that somebody names, as it is now; it has to last until the end.

    So whatever was found out about the pid in between is of this process. Raises NotFound when it is gone, at the end
    too, and Refused when it may not be examined.
    """
    pidfd = _pidfd(pid)
    now, since = owner(pid), started(pid)
    process = Process(pid, now.uid, now.gid, since, pidfd)
    require_running(process)
    yield process
    require_running(process)


def _pidfd(pid: int) -> PidFd:
    if not 0 < pid < _PIDS:
        raise NotFound(f"there is no process {pid}")
    try:
        return PidFd.of(pid)
    except ProcessLookupError as error:
        raise NotFound(f"there is no process {pid}") from error
    except OSError as error:  # a thread's id among them
        raise Refused(f"cannot open process {pid}: {error.strerror}") from error


def require_same(process: Process) -> None:
    """Raise NotFound or Refused unless the process that made the connection still runs, as the user that it was."""
    require_running(process)
    if not _belongs_to(process):
        require_owner(process, owner(process.pid))


def require_running(process: Process) -> None:
    """Raise NotFound or Refused unless the process that made the connection still runs.

    What was read of its pid before is then its own: a pid is given again only after its process has ended.
    """
    if process.pidfd is not None:
        ended = process.pidfd.ended
    else:
        stat = _stat(process.pid)
        if stat.started != process.started:
            raise Refused(f"pid {process.pid} belongs to another process than the one that connected")
        ended = stat.ended
    # Its pid is kept until its parent asks for it, while others may go on with its connection.
    if ended:
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
