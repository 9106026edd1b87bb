"""What the verdicts rest on, read anew when its files change: endorsement authorities and hashes, and policies."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Generic, TypeVar

from attestors.tpm.policy.configuration import File
from operations import config, hcl
from operations.errors import SpireError
from operations.logs import Logger

T = TypeVar("T")

INTERVAL: Final = 3.0
"""Seconds for which files are not looked at again."""

_Stamp = tuple[tuple[str, int, int, int], ...]


class Source(Generic[T]):
    """The value of some files. A change that cannot be used leaves the value there was, with an error in the log."""

    def __init__(self, what: str, load: Callable[[], T], paths: Callable[[], Sequence[str]], log: Logger) -> None:
        """`load` and `paths` raise SpireError, and block. The latter are the files and folders of what was loaded."""
        self._what = what
        self._load = load
        self._paths = paths
        self._log = log
        self._checked = time.monotonic()
        self._refreshing = False
        # Looked at before they are read: what changes meanwhile is read once more.
        self._watched = paths()
        self._stamp: _Stamp = _stamp(self._watched)
        self._value = load()

    async def get(self) -> T:
        now = time.monotonic()
        if now - self._checked >= INTERVAL and not self._refreshing:
            self._refreshing = True
            try:
                await asyncio.to_thread(self._refresh)
            finally:
                self._refreshing = False
                self._checked = now
        return self._value

    def _refresh(self) -> None:
        stamp = _stamp(self._watched)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            watched = self._paths()
            if watched != self._watched:
                stamp = _stamp(watched)
            value = self._load()
        except SpireError as error:
            self._log.error(f"The changed {self._what} cannot be used, and the former goes on", error=str(error))
            return
        self._value, self._watched, self._stamp = value, watched, stamp
        self._log.info(f"The {self._what} was read anew")


def policy_files(path: str) -> Sequence[str]:
    """The policy file, and the files that it names. Raises ConfigurationError."""
    body = hcl.load(path)
    rules = [policy.ima for policy in config.bind(File, body).policy.values() if policy.ima is not None]
    named = [name for ima in rules for name in (ima.allow_file, *ima.signed_by) if name]
    return (path, *(str(Path(path).parent / name) for name in named))


def _stamp(paths: Sequence[str]) -> _Stamp:
    """What changes when a file does, or a file of a folder."""
    found: list[tuple[str, int, int, int]] = []
    for path in paths:
        files = [path]
        with suppress(OSError):  # no folder, or none that is there any more
            files += sorted(str(each) for each in Path(path).iterdir())
        for file in files:
            try:
                status = os.stat(file)  # noqa: PTH116 - follows links, as reading does
            except OSError:
                found.append((file, 0, 0, 0))
            else:
                found.append((file, status.st_ino, status.st_size, status.st_ctime_ns))
    return tuple(found)
