"""What key stores keep beside their devices: files, each replaced as a whole, for one process at a time."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from keystores.errors import PermanentlyUnusable, Refused
from operations import duration
from operations.errors import ConfigurationError, Corrupt
from operations.files import write_atomically
from operations.locks import lock

VERSION = 1


class Versioned(Protocol):
    @property
    def version(self) -> int: ...


T = TypeVar("T", bound=Versioned)


def read(path: Path, kind: type[T], what: str, advice: str) -> T | None:
    """None when there is no file. Raises Corrupt for one that cannot be understood; it is left as it is.

    `what` follows "is damaged" in the line, `advice` ends it.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PermanentlyUnusable(f"keys_path: {path} cannot be read: {error.strerror}") from error
    try:
        found = msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"keys_path: {path} is damaged{what} ({error}); {advice}") from error
    if found.version != VERSION:
        raise Corrupt(f"keys_path: {path} has version {found.version}, which a later release wrote")
    return found


def write(path: Path, content: msgspec.Struct) -> None:
    """Raises PermanentlyUnusable; the former content is in place then."""
    try:
        write_atomically(path, msgspec.json.encode(content), mode=0o600)
    except OSError as error:
        raise PermanentlyUnusable(f"keys_path: {path} cannot be written: {error.strerror}") from error


@contextmanager
def locked(path: Path, keys_path: Path) -> Generator[None]:
    """Keep other processes from the file and what goes with it. Raises Refused, PermanentlyUnusable.

    The lock ends with the process. Two processes with one mapping would each dispose of the keys that the other makes.
    """
    try:
        descriptor = lock(path)
    except BlockingIOError as error:
        raise Refused(f"keys_path: another process uses {keys_path}; stop it, or give this one its own") from error
    except OSError as error:
        raise PermanentlyUnusable(f"keys_path: {keys_path} cannot be written: {error.strerror}") from error
    try:
        yield
    finally:
        os.close(descriptor)


def grace(text: str) -> timedelta:
    """How long a key is kept that no id names any more; a Go duration. Raises ConfigurationError."""
    try:
        period = duration.parse(text)
    except ValueError as error:
        raise ConfigurationError(f"grace: {error}") from error
    if period < timedelta():
        raise ConfigurationError("grace: it must not be negative")
    return period
