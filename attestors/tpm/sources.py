"""What the verdicts rest on, read anew when its files change: endorsement authorities and hashes, and policies."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Generic, TypeVar

from operations.errors import SpireError
from operations.logs import Logger

T = TypeVar("T")

INTERVAL: Final = 3.0
"""Seconds for which files are not looked at again."""

_Stamp = tuple[tuple[str, int, int, int], ...]


class Source(Generic[T]):
    """The value of some files. A change that cannot be used leaves the value there was, with an error in the log."""

    def __init__(self, what: str, load: Callable[[], T], paths: Callable[[T], Sequence[str]], log: Logger) -> None:
        """`load` raises SpireError, and blocks; `paths` are the files and folders that a value comes from."""
        self._what = what
        self._load = load
        self._paths = paths
        self._log = log
        self._checked = time.monotonic()
        self._value = load()
        self._stamp = _stamp(paths(self._value))

    async def get(self) -> T:
        now = time.monotonic()
        if now - self._checked >= INTERVAL:
            self._checked = now
            await asyncio.to_thread(self._refresh)
        return self._value

    def _refresh(self) -> None:
        stamp = _stamp(self._paths(self._value))
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            value = self._load()
        except SpireError as error:
            self._log.error(f"The changed {self._what} cannot be used, and the former goes on", error=str(error))
            return
        self._value = value
        self._stamp = _stamp(self._paths(value))
        self._log.info(f"The {self._what} was read anew")


def _stamp(paths: Sequence[str]) -> _Stamp:
    """What changes when a file does, or a file of a folder."""
    found: list[tuple[str, int, int, int]] = []
    for path in paths:
        files = [path]
        if Path(path).is_dir():
            files += sorted(str(each) for each in Path(path).iterdir())
        for file in files:
            try:
                status = os.stat(file)  # noqa: PTH116 - follows links, as reading does
            except OSError:
                found.append((file, 0, 0, 0))
            else:
                found.append((file, status.st_ino, status.st_size, status.st_ctime_ns))
    return tuple(found)
