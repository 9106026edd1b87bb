"""The token that a process has: in a file as the process sees it, or in its environment. Blocks.

The process decides what is at the path: it may have a root directory, mounts and links of its own. So the path is
resolved below its root and nowhere else (openat2(2), RESOLVE_IN_ROOT), and with its own rights: a token that its user
may not read is not the process's.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import stat
from typing import Final

from attestors import processes
from attestors.oidc.tokens import LARGEST_TOKEN
from operations.errors import InvalidArgument, NotFound, Refused, Unsupported
from transport.peer import Process

_LARGEST_ENVIRONMENT = 4 << 20

_OPENAT2: Final = 437  # on every architecture (asm-generic/unistd.h)
_SETGROUPS: Final = {"x86_64": 116, "aarch64": 159}
_RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT = 0x02, 0x10
_NOT_THERE: Final = frozenset((errno.ENOENT, errno.ENOTDIR))

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    """struct open_how of openat2(2)."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def token_of(process: Process, path: str, variable: str) -> str | None:
    """None where the process has none. To be called in a thread that does nothing else, and ends afterwards.

    Raises NotFound when the process is gone; Refused when it is another user's by now, or what is there may not be
    read by its user or is no file; InvalidArgument for what cannot be a token.
    """
    found = _from_environment(process.pid, variable) if variable else None
    if path:
        found = _from_file(process, path) or found
    if found is None:
        return None
    if len(found) > LARGEST_TOKEN:
        raise InvalidArgument(f"the token is longer than {LARGEST_TOKEN} bytes")
    try:
        return found.strip().decode("ascii") or None
    except UnicodeDecodeError as error:
        raise InvalidArgument("what the process has there is no JWT") from error


def _from_environment(pid: int, variable: str) -> bytes | None:
    wanted = variable.encode() + b"="
    for line in processes.read(pid, "environ", limit=_LARGEST_ENVIRONMENT).split(b"\0"):
        if line.startswith(wanted):
            return line[len(wanted) :]
    return None


def _from_file(process: Process, path: str) -> bytes | None:
    owner = processes.owner(process.pid)
    processes.require_owner(process, owner)
    try:
        root = os.open(processes.path_of(process.pid, "root"), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise NotFound(f"process {process.pid} is gone") from error
    except OSError as error:
        raise Refused(f"cannot see the files of process {process.pid}: {error.strerror}") from error
    try:
        _become(owner)
        return _read(root, path)
    finally:
        os.close(root)


def _become(owner: processes.Owner) -> None:
    """Give this thread, and no other, the file rights of a user (credentials(7)). They are never given back."""
    if os.geteuid() != 0:
        return  # who is not root sees no files but those of the own user
    number = _SETGROUPS.get(platform.machine())
    if number is None:
        raise Unsupported(f"token_path is not to be had on {platform.machine()}: set token_env")
    groups = (ctypes.c_uint32 * len(owner.groups))(*owner.groups)
    # The C library's own setgroups(3) would change all threads.
    if _libc.syscall(number, ctypes.c_size_t(len(owner.groups)), groups) != 0:
        raise Refused(f"cannot take the groups of a process to read its token: {os.strerror(ctypes.get_errno())}")
    _libc.setfsgid(owner.gid)
    _libc.setfsuid(owner.uid)
    # They tell no failure, but the former value (setfsuid(2)).
    if (_libc.setfsgid(ctypes.c_uint32(-1)), _libc.setfsuid(ctypes.c_uint32(-1))) != (owner.gid, owner.uid):
        raise Refused("cannot take the user of a process to read its token")


def _read(root: int, path: str) -> bytes | None:
    try:
        descriptor = _open_in(root, path)
    except OSError as error:
        if error.errno in _NOT_THERE:
            return None
        raise Refused(f"cannot read {path} as the process's user: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Refused(f"{path} is no file where the process runs")
        return _up_to(descriptor, LARGEST_TOKEN + 1)
    except OSError as error:
        raise Refused(f"cannot read {path} where the process runs: {error.strerror}") from error
    finally:
        os.close(descriptor)


def _open_in(root: int, path: str) -> int:
    """Raises OSError. Never waits for a writer of a pipe, nor takes a terminal."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    how = _OpenHow(flags, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    descriptor: int = _libc.syscall(
        _OPENAT2, ctypes.c_int(root), os.fsencode(path), ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how))
    )
    if descriptor < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return descriptor


def _up_to(descriptor: int, size: int) -> bytes:
    parts: list[bytes] = []
    while size > 0 and (part := os.read(descriptor, size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
