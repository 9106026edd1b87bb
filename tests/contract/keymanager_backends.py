"""What the key manager contract suite needs of each backend."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from keystores import disk, memory
from keystores.pkcs11.configuration import Configuration
from keystores.pkcs11.manager import load_server
from operations import logs
from operations.hcl import Body, Position
from plugins.blocks import PluginBlock
from plugins.catalog import PluginContext
from plugins.external.loading import ExternalPlugins
from plugins.keymanager import KeyManager
from server.catalog import FACADES
from tests.simulators import softhsm


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


@dataclass
class Pkcs11:
    hsm: softhsm.SoftHsm
    durable = True

    async def open(self) -> KeyManager:
        configuration = Configuration(
            module_path=softhsm.MODULE,
            token_label=self.hsm.label,
            pin_file=str(self.hsm.pin_file),
            namespace="server-a",
            keys_path=str(self.hsm.folder / "keys.json"),
        )
        context = PluginContext(trust_domain="example.org", data_dir=None, log=logs.get("pkcs11"))
        return await load_server(configuration, context)


@contextmanager
def memory_backend(_folder: Path) -> Generator[Backend]:
    yield Memory()


@contextmanager
def disk_backend(folder: Path) -> Generator[Backend]:
    yield Disk(folder)


@contextmanager
def pkcs11_backend(folder: Path) -> Generator[Backend]:
    with softhsm.SoftHsm.create(folder).installed() as hsm:
        yield Pkcs11(hsm)


class External:
    """A plugin that holds its keys in memory, behind its own process."""

    durable = False

    async def open(self) -> KeyManager:
        place = Position("s.conf", 1)
        block = PluginBlock(
            type="KeyManager",
            name="simulated",
            data=Body((), place, ""),
            position=place,
            command=sys.executable,
            args=("-m", "tests.simulators.plugin"),
        )
        manager: KeyManager = await ExternalPlugins(FACADES, tuple).load(block, "example.org")
        return manager


@contextmanager
def external_backend(_folder: Path) -> Generator[Backend]:
    yield External()


BACKENDS = {"memory": memory_backend, "disk": disk_backend, "pkcs11": pkcs11_backend, "external": external_backend}

SEALING = ("disk", "pkcs11")
"""The backends that have the further power to seal."""

INVENTORY = ("disk", "memory", "pkcs11")
"""The backends that tell of their keys, prove and dispose of them."""

NEVER_EXPORTED = ("pkcs11",)
"""Those of them whose proof stands."""

WITHDRAWING = ("disk", "memory", "pkcs11")
"""Those of them that give up a key which an id still names."""

RETIRING = ("pkcs11",)
"""Those of them that keep a key for a while after another one took its id."""
