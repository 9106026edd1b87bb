"""KeyManager "memory": keys that end with the process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from keystores import software
from plugins.keyinventory import KeyRecord, Proof
from plugins.keymanager import Key, KeyManager, KeyType

if TYPE_CHECKING:
    from plugins.catalog import PluginContext


_PLACE = "memory of this process"


class Configuration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """It has no settings."""


class MemoryKeyManager:
    def __init__(self) -> None:
        self._ring = software.KeyRing({})

    async def generate(self, key_id: str, key_type: KeyType) -> Key:
        keys = self._ring.keys
        key = await software.generate(key_id, key_type)
        keys[key_id] = key
        return key

    async def get(self, key_id: str) -> Key:
        return self._ring.named(key_id)

    async def list(self) -> Sequence[Key]:
        return self._ring.listed()

    async def inventory(self) -> Sequence[KeyRecord]:
        return self._ring.records(_PLACE)

    async def prove(self, key_id: str) -> Proof:
        return await self._ring.proof(key_id, _PLACE, f"in the {_PLACE}")

    async def dispose(self, handle: str) -> None:
        self._ring.refuse_disposal(handle)

    async def withdraw(self, handle: str) -> None:
        del self._ring.keys[self._ring.named(handle).id]

    async def close(self) -> None:
        self._ring.close()


async def load(_configuration: Configuration, _context: PluginContext) -> KeyManager:
    return MemoryKeyManager()
