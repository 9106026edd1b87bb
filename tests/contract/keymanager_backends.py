"""What the key manager contract suite needs of each backend."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from keystores import disk, memory
from keystores.pkcs11.configuration import Configuration
from keystores.pkcs11.manager import load_server
from keystores.tpm import configuration as tpm_configuration
from keystores.tpm import manager as tpm_manager
from keystores.vault import manager as vault_manager
from keystores.vault.configuration import TokenAuth
from operations import logs
from operations.hcl import Body, Position
from plugins.blocks import PluginBlock
from plugins.catalog import PluginContext
from plugins.external.loading import ExternalPlugins
from plugins.keymanager import KeyManager, KeyType
from server.catalog import FACADES
from tests.simulators import kryoptic, openbao, softhsm, swtpm


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
    hsm: softhsm.SoftHsm | kryoptic.Kryoptic
    module_path: str = softhsm.MODULE
    durable = True

    async def open(self) -> KeyManager:
        configuration = Configuration(
            module_path=self.module_path,
            token_label=self.hsm.label,
            pin_file=str(self.hsm.pin_file),
            namespace="server-a",
            keys_path=str(self.hsm.folder / "keys.json"),
        )
        context = PluginContext(trust_domain="example.org", data_dir=None, log=logs.get("pkcs11"))
        return await load_server(configuration, context)


@dataclass
class Tpm:
    tpm: swtpm.Swtpm
    folder: Path
    durable = True

    async def open(self) -> KeyManager:
        configuration = tpm_configuration.Configuration(tcti=self.tpm.tcti, keys_path=str(self.folder / "keys"))
        context = PluginContext(trust_domain="example.org", data_dir=None, log=logs.get("tpm"))
        return await tpm_manager.load_server(configuration, context)


@contextmanager
def tpm_backend(folder: Path) -> Generator[Backend]:
    with swtpm.started(folder / "tpm") as tpm:
        yield Tpm(tpm, folder)
        assert not tpm.handles(), "a bare TPM is left clean"


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


@contextmanager
def kryoptic_backend(folder: Path) -> Generator[Backend]:
    with kryoptic.Kryoptic.create(folder).installed() as token:
        yield Pkcs11(token, kryoptic.module())


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


@dataclass
class Served:
    """The key store in a token as a plugin that our own program hosts."""

    hsm: softhsm.SoftHsm
    durable = True

    async def open(self) -> KeyManager:
        place = Position("s.conf", 1)
        block = PluginBlock(
            type="KeyManager",
            name="pkcs11",
            data=Body((), place, ""),
            position=place,
            command=str(Path(sys.executable).with_name("spire-keystore-pkcs11")),
            data_text=f"""
                module_path = "{softhsm.MODULE}"
                token_label = "{self.hsm.label}"
                pin_file    = "{self.hsm.pin_file}"
                keys_path   = "{self.hsm.folder}/keys.json"
            """,
        )
        manager: KeyManager = await ExternalPlugins(FACADES, tuple).load(block, "example.org")
        return manager


@contextmanager
def served_backend(folder: Path) -> Generator[Backend]:
    with softhsm.SoftHsm.create(folder).installed() as hsm:
        yield Served(hsm)


@dataclass
class Vault:
    bao: openbao.Bao
    server_id: str
    durable = True

    async def open(self) -> KeyManager:
        configuration = vault_manager.Configuration(
            vault_addr=self.bao.url,
            ca_cert_path=str(self.bao.ca),
            token_auth=TokenAuth(token=openbao.ROOT_TOKEN),
            key_identifier_value=self.server_id,
        )
        context = PluginContext(trust_domain="example.org", data_dir=None, log=logs.get("vault"))
        return await vault_manager.load(configuration, context)


@contextmanager
def vault_backend(_folder: Path) -> Generator[Backend]:
    yield Vault(openbao.shared(), str(uuid.uuid4()))


BACKENDS = {
    "hashicorp_vault": vault_backend,
    "memory": memory_backend,
    "disk": disk_backend,
    "pkcs11": pkcs11_backend,
    "external": external_backend,
    "served": served_backend,
    "tpm": tpm_backend,
}

BUILT_ON_DEMAND = {"kryoptic": kryoptic_backend}
"""Those that belong to `make interop`: what they stand on is built by a toolchain that the other tests do without."""

LACKING = {"tpm": frozenset({KeyType.RSA_4096})}
"""The key types that a backend does not have, and refuses."""

SEALING = ("disk", "pkcs11", "tpm")
"""The backends that have the further power to seal."""

INVENTORY = ("disk", "memory", "pkcs11", "tpm")
"""The backends that tell of their keys, prove and dispose of them."""

NEVER_EXPORTED = ("pkcs11", "tpm")
"""Those of them whose proof stands."""

WITHDRAWING = ("disk", "memory", "pkcs11", "tpm")
"""Those of them that give up a key which an id still names."""

RETIRING = ("pkcs11", "tpm")
"""Those of them that keep a key for a while after another one took its id."""
