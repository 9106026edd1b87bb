"""KeyManager "memory": keys that end with the process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from keystores import software
from keystores.errors import NotFound
from plugins.keymanager import Key, KeyManager, KeyType

if TYPE_CHECKING:
    from plugins.catalog import PluginContext


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
        try:
            return self._ring.keys[key_id]
        except KeyError:
            raise NotFound(f"no key has the id {key_id!r}") from None

    async def list(self) -> Sequence[Key]:
        return self._ring.listed()

    async def close(self) -> None:
        self._ring.close()


async def load(_configuration: Configuration, _context: PluginContext) -> KeyManager:
    return MemoryKeyManager()
