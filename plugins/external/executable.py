"""The file of a plugin, and the check that it is the one the operator meant."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from operations.errors import ConfigurationError, PermanentlyUnusable, Refused

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Verified:
    """What to execute: `path`, with `descriptors` kept open in the new process."""

    path: str
    descriptors: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Executable:
    """`path` is absolute: PATH is never searched. `checksum` is the SHA-256 that the file must have."""

    path: str
    checksum: bytes | None = None

    @classmethod
    def of(cls, command: str, checksum: str | None) -> Executable:
        """From plugin_cmd and plugin_checksum. Raises ConfigurationError, without its place."""
        return cls(str(Path(command).absolute()), _checksum(checksum) if checksum else None)

    def check(self) -> None:
        """Raises ConfigurationError, without its place, for what cannot be executed."""
        try:
            mode = Path(self.path).stat().st_mode
        except OSError as error:
            raise ConfigurationError(f"plugin_cmd {self.path}: {(error.strerror or str(error)).lower()}") from error
        if not stat.S_ISREG(mode) or not os.access(self.path, os.X_OK):
            raise ConfigurationError(f"plugin_cmd {self.path}: this is no executable file for this user (chmod +x)")

    @asynccontextmanager
    async def verified(self) -> AsyncGenerator[Verified, None]:
        """The file to execute, while the context lasts; on leaving, that it still is what was checked.

        With a checksum it is the very file that was read, by its descriptor, whatever stands at the path by then. Who
        writes into that file between check and start is found out at the end: when its time of change (ctime, which
        cannot be set back) is another, it is read again. Leave the context before the plugin is told anything. Raises
        Refused, and PermanentlyUnusable for a file that cannot be read.
        """
        if self.checksum is None:
            yield Verified(self.path)
            return
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self._unreadable(error) from error
        try:
            before = _stamp(descriptor)
            await self._compare(descriptor)
            yield Verified(f"/proc/self/fd/{descriptor}", (descriptor,))
            if _stamp(descriptor) != before:  # a new link, or none any more, changes the time too
                await self._compare(descriptor)
        finally:
            os.close(descriptor)

    async def _compare(self, descriptor: int) -> None:
        try:
            found = await asyncio.to_thread(_sha256, descriptor)
        except OSError as error:
            raise self._unreadable(error) from error
        if found != self.checksum:
            raise Refused(f"checksums did not match: {self.path} has {found.hex()}; check plugin_checksum")

    def _unreadable(self, error: OSError) -> PermanentlyUnusable:
        reason = (error.strerror or str(error)).lower()
        return PermanentlyUnusable(f"error verifying checksum: cannot read {self.path}: {reason}")


def _checksum(text: str) -> bytes:
    try:
        checksum = bytes.fromhex(text)
    except ValueError:
        raise ConfigurationError("plugin_checksum: checksum is not a valid hex string") from None
    size = hashlib.sha256().digest_size
    if len(checksum) != size:
        raise ConfigurationError(
            f"plugin_checksum: expected checksum of length {2 * size}; got {2 * len(checksum)} (SHA-256 in hex)"
        )
    return checksum


def _stamp(descriptor: int) -> tuple[int, int, int]:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _sha256(descriptor: int) -> bytes:
    digest = hashlib.sha256()
    at = 0
    while chunk := os.pread(descriptor, _CHUNK, at):
        digest.update(chunk)
        at += len(chunk)
    return digest.digest()
