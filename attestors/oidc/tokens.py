"""A process's token: in a file as the process sees it, or in its environment.

What a process's files are is the process's business, so nothing here trusts them: links lead nowhere but within its
root (openat2(2), RESOLVE_IN_ROOT), and only a plain file, of a token's size, is opened at all.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat

from attestors import processes
from attestors.oidc.verifier import LONGEST
from operations.errors import NotFound, Refused

_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_IN_ROOT = 0x10
_LARGEST_ENVIRONMENT = 4 << 20


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_libc = ctypes.CDLL(None, use_errno=True)


def from_file(pid: int, path: str) -> str | None:
    """The file's content; None where there is none.

    Blocks, as long as the process's file system does. Raises NotFound when the process is gone, Refused for what is
    no file with a token.
    """
    try:
        root = os.open(processes.path_of(pid, "root"), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise NotFound(f"process {pid} is gone") from error
    except OSError as error:
        raise Refused(f"cannot enter the root of process {pid}: {error.strerror}") from error
    try:
        found = _open_in_root(root, path)
        if found is None:
            return None
        try:
            return _text(_read(found), f"{path} of process {pid}")
        finally:
            os.close(found)
    except OSError as error:
        raise Refused(f"cannot read {path} of process {pid}: {error.strerror}") from error
    finally:
        os.close(root)


def from_environment(pid: int, name: str) -> str | None:
    """A variable that the process began with; None where it had none. Raises NotFound, and Refused as above."""
    wanted = os.fsencode(name) + b"="
    for variable in processes.read(pid, "environ", limit=_LARGEST_ENVIRONMENT).split(b"\0"):
        if variable.startswith(wanted):
            return _text(variable[len(wanted) :], f"{name} of process {pid}")
    return None


def _open_in_root(root: int, path: str) -> int | None:
    """A descriptor of the file that does nothing yet (O_PATH): opening a device or a pipe could. Raises OSError."""
    how = _How(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    opened: int = _libc.syscall(_OPENAT2, root, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))
    if opened >= 0:
        return opened
    number = ctypes.get_errno()
    if number in (errno.ENOENT, errno.ENOTDIR):
        return None
    raise OSError(number, os.strerror(number))


def _read(found: int) -> bytes:
    """The file's content, or somewhat more than a token's longest. Raises OSError, Refused."""
    if not stat.S_ISREG(os.fstat(found).st_mode):
        raise OSError(errno.EINVAL, "it is no plain file")
    descriptor = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        content = bytearray()
        while len(content) <= LONGEST and (chunk := os.read(descriptor, LONGEST + 1)):
            content += chunk
        return bytes(content)
    finally:
        os.close(descriptor)


def _text(content: bytes, what: str) -> str | None:
    """Without white space around; None for nothing."""
    if len(content) > LONGEST:
        raise Refused(f"{what} is larger than {LONGEST} bytes, and no token")
    try:
        return content.decode("ascii").strip() or None
    except UnicodeDecodeError as error:
        raise Refused(f"{what} is no token: it has other characters than ASCII's") from error
