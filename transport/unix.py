"""Unix sockets: listening with the right mode, and who is calling."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final

from operations.errors import ConfigurationError, Refused, TemporarilyUnavailable
from transport.peer import PidFd, Process

_CREDENTIALS: Final = struct.Struct("3i")
_SO_PEERPIDFD: Final = 77  # asm-generic/socket.h
_LONGEST_PATH: Final = 107  # sun_path without its final NUL (unix(7))
_SEE_PROC: Final = "mount /proc of our own PID namespace, and without hidepid unless we are in its gid (proc(5))"
_STARTED: Final = 22 - 3  # field 22 of /proc/PID/stat (proc(5)), counted behind the name, which is field 2


def caller(sock: socket.socket, *, strangers: bool = False) -> Process:
    """The process at the other end, as it was when it connected.

    A process of another PID namespace has no pid here; with `strangers` it is told as pid 0, by its user alone.

    Raises ConnectionError when it is gone already or cannot be told, Refused when we do not see it in /proc, and other
    OSErrors when we lack the means, file descriptors say.
    """
    pid, uid, gid = credentials(sock)
    if not pid:
        if strangers:
            return Process(pid=0, uid=uid, gid=gid, started=0)
        raise ConnectionError("a process of another PID namespace connected, which cannot be told from others")
    pidfd = _pidfd(sock, pid)
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:  # noqa: PTH123 - for each connection: Path costs more
            status = file.read()
    except (FileNotFoundError, ProcessLookupError) as error:
        if pidfd is not None and not pidfd.ended:
            raise Refused(f"process {pid} connected and is not to be seen in /proc: {_SEE_PROC}") from error
        raise _gone(pid) from error
    if pidfd is not None and pidfd.ended:  # then what was read may be of another with the same pid
        raise _gone(pid)
    return Process(pid, uid, gid, int(status.rpartition(b")")[2].split()[_STARTED]), pidfd)


def credentials(sock: socket.socket) -> tuple[int, int, int]:
    """The pid, uid and gid that the process at the other end had when it connected."""
    pid, uid, gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, uid, gid


def bind(path: str, mode: int) -> socket.socket:
    """A listening socket at `path` with permission bits `mode`, and never with more.

    A socket that nobody listens on is removed. Raises ConfigurationError when the path cannot be used and
    TemporarilyUnavailable while another process listens there.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        _check(path)
        _clear(path)
        # Linux gives the name in the file system the mode of the socket, less the umask; what that took is given back.
        os.fchmod(listener.fileno(), mode)
        listener.bind(path)
        Path(path).chmod(mode)
        listener.listen(socket.SOMAXCONN)
    except OSError as error:
        listener.close()
        raise ConfigurationError(f"cannot listen on {path}: {_reason(error)}; check the path and its folder") from error
    except BaseException:
        listener.close()
        raise
    return listener


def inode(path: str) -> int:
    return os.lstat(path).st_ino


def remove(path: str, made: int) -> None:
    """Removes the socket at `path` unless another has taken its place since inode `made`."""
    with suppress(OSError):
        if inode(path) == made:
            Path(path).unlink()


def _pidfd(sock: socket.socket, pid: int) -> PidFd | None:
    """Of the very process that connected; before Linux 6.5, of the one that has its pid now. None where there is none.

    A sandbox may forbid them (seccomp(2)), with whatever error it likes.
    """
    try:
        return PidFd(sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD))
    except OSError as error:
        if error.errno in (errno.ESRCH, errno.EINVAL, errno.ENODATA):
            raise _gone(pid) from error
        if error.errno != errno.ENOPROTOOPT:
            raise
    try:
        return PidFd.of(pid)
    except ProcessLookupError as error:
        raise _gone(pid) from error
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):
            return None
        raise


def _gone(pid: int) -> ConnectionError:
    return ConnectionError(f"process {pid} connected and is gone")


def _check(path: str) -> None:
    """Refuses what is no path of a socket, with what to do."""
    if path.startswith(("@", "\0")):
        raise ConfigurationError(
            f"cannot listen on {path!r}: an abstract socket has no permissions; give the path of a file"
        )
    if not path or "\0" in path:
        raise ConfigurationError(f"cannot listen on {path!r}: this is no path; give the path of a file")
    length = len(os.fsencode(path))
    if length > _LONGEST_PATH:
        raise ConfigurationError(
            f"cannot listen on {path}: the path has {length} bytes, of which a Unix socket's may have {_LONGEST_PATH};"
            " choose a shorter one"
        )


def _clear(path: str) -> None:
    """Makes way for a socket, if nothing in use is in it."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigurationError(f"cannot listen on {path}: it is there already and is no socket; remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        answer = probe.connect_ex(path)
    if answer in (0, errno.EAGAIN):
        raise TemporarilyUnavailable(f"another process is listening on {path}; stop it or change the socket's path")
    Path(path).unlink(missing_ok=True)


def _reason(error: OSError) -> str:
    return os.strerror(error.errno).lower() if error.errno else str(error)
