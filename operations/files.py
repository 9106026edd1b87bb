"""Files that must not be lost, and files that must not be read by others."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from operations.errors import ConfigurationError, TemporarilyUnavailable

_SECRET_LIMIT = 1 << 20


def write_atomically(
    path: str | os.PathLike[str], data: bytes, mode: int = 0o600, *, owner: tuple[int, int] = (-1, -1)
) -> None:
    """Replace the file's content: whoever reads it, also after a power cut, finds the old or the new, never a part.

    `owner` are the numbers of user and group; -1 is this process's own.
    Raises OSError; the old content is then still in place. Blocks on the disk: call it in a thread.
    """
    target = Path(path)
    # tempfile would bring shutil with all its compressors into every program's start.
    temporary = target.with_name(f".{target.name}.{os.urandom(6).hex()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if owner != (-1, -1):
                os.fchown(file.fileno(), *owner)
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(target.parent)


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Make renames and removals in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_secret(path: str | os.PathLike[str], what: str = "secret") -> str:
    """A secret from its own file, without the newline at its end.

    Raises ConfigurationError, naming the file, when it is missing, empty, not UTF-8, too large, no regular file, or
    open to group or others; TemporarilyUnavailable for other failures of the system.
    """
    name = os.fspath(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise ConfigurationError(f"cannot read the {what}: {error.strerror}", file=name) from error
    except OSError as error:
        raise TemporarilyUnavailable(f"{name}: cannot read the {what}: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigurationError(f"the {what} must be in a regular file", file=name)
        if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            allowed = f"{stat.S_IMODE(status.st_mode):04o}"
            raise ConfigurationError(f"the {what} is open to others (mode {allowed}): set its mode to 0600", file=name)
        data = file.read(_SECRET_LIMIT + 1)
    if len(data) > _SECRET_LIMIT:
        raise ConfigurationError(f"the {what} is larger than {_SECRET_LIMIT} bytes", file=name)
    try:
        secret = data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"the {what} is not UTF-8 text", file=name) from error
    if not secret:
        raise ConfigurationError(f"the {what} is empty", file=name)
    return secret
