"""What the key manager contract suite needs of each backend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from keystores import disk, memory
from plugins.keymanager import KeyManager


class Backend(Protocol):
    @property
    def durable(self) -> bool:
        """Keys outlive `close`."""
        ...

    async def open(self) -> KeyManager: ...


class Memory:
    durable = False

    async def open(self) -> KeyManager:
        return memory.MemoryKeyManager()


@dataclass
class Disk:
    folder: Path
    durable = True

    async def open(self) -> KeyManager:
        return await disk.DiskKeyManager.open(self.folder / "keys.json")


@contextmanager
def memory_backend(_folder: Path) -> Iterator[Backend]:
    yield Memory()


@contextmanager
def disk_backend(folder: Path) -> Iterator[Backend]:
    yield Disk(folder)


BACKENDS = {"memory": memory_backend, "disk": disk_backend}
