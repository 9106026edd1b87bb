"""KeyManager "pkcs11" on a SoftHSM, opened, and looked at from outside."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from keystores.pkcs11.configuration import Configuration
from keystores.pkcs11.manager import load_server
from operations import logs
from plugins.catalog import PluginContext
from plugins.keymanager import KeyManager
from tests.simulators import softhsm
from tests.simulators.softhsm import SoftHsm


def context() -> PluginContext:
    return PluginContext(trust_domain="example.org", data_dir=None, log=logs.get("pkcs11"))


def configured(hsm: SoftHsm, **changes: Any) -> Configuration:
    configuration = Configuration(
        module_path=softhsm.MODULE,
        token_label=hsm.label,
        pin_file=str(hsm.pin_file),
        namespace="server-a",
        keys_path=str(hsm.folder / "keys.json"),
    )
    return msgspec.structs.replace(configuration, **changes)


@asynccontextmanager
async def opened(hsm: SoftHsm, **changes: Any) -> AsyncGenerator[KeyManager]:
    manager = await load_server(configured(hsm, **changes), context())
    try:
        yield manager
    finally:
        await manager.close()


def private_objects(hsm: SoftHsm) -> list[str]:
    """pkcs11-tool's description of each private key."""
    listing = hsm.tool("--list-objects", "--type", "privkey")
    return re.findall(r"Private Key Object;.*?(?=\nPrivate Key Object|\Z)", listing, re.DOTALL)
