"""KeyManager "disk": keys in one JSON file, `{"keys": {"<key id>": "<base64 of DER PKCS #8>"}}`, mode 0600.

SPIRE 1.16 writes the same, so a server or an agent can be taken over with its keys. Beside it, in a file that SPIRE
does not know, lies the secret that `Sealing` derives others from; it is made when it is first asked for.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from keystores import software
from keystores.errors import NotFound
from operations.errors import Corrupt, PermanentlyUnusable, Refused, SpireError
from operations.files import write_atomically
from operations.locks import lock
from plugins.keyinventory import KeyRecord, Proof
from plugins.keymanager import Key, KeyManager, KeyType

if TYPE_CHECKING:
    from plugins.catalog import PluginContext


_ROOT_SIZE = 32


class ServerConfiguration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`keys_path` is the file."""

    keys_path: str


class AgentConfiguration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`directory` is the folder of keys.json."""

    directory: str


class _File(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    keys: dict[str, bytes]


class DiskKeyManager:
    """The whole file is written anew, atomically, before a new key is handed out."""

    def __init__(self, path: Path, lock: int | None, keys: dict[str, software.SoftwareKey]) -> None:
        self._path = path
        self._lock = lock
        self._ring = software.KeyRing(keys)
        self._writing = asyncio.Lock()

    @classmethod
    async def open(cls, path: Path) -> DiskKeyManager:
        """Raises Corrupt for a file that cannot be read back, which is left as it is, and Refused for one in use."""
        return cls(path, *await asyncio.to_thread(_open, path))

    async def generate(self, key_id: str, key_type: KeyType) -> Key:
        keys = self._ring.keys
        key = await software.generate(key_id, key_type)
        # Once the file may have changed the caller's cancellation must not leave memory behind it.
        await asyncio.shield(asyncio.ensure_future(self._store(keys, key)))
        return key

    async def _store(self, keys: dict[str, software.SoftwareKey], key: software.SoftwareKey) -> None:
        async with self._writing:
            await asyncio.to_thread(_write, self._path, {**keys, key.id: key})
            keys[key.id] = key

    async def inventory(self) -> Sequence[KeyRecord]:
        """When a key was made is not in the file, which is SPIRE's: it is known of those that this process made."""
        return self._ring.records(str(self._path))

    async def prove(self, key_id: str) -> Proof:
        return await self._ring.proof(key_id, str(self._path), f"in {self._path} and in the memory of this process")

    async def dispose(self, handle: str) -> None:
        self._ring.refuse_disposal(handle)

    async def withdraw(self, handle: str) -> None:
        await asyncio.shield(asyncio.ensure_future(self._remove(handle)))

    async def _remove(self, key_id: str) -> None:
        async with self._writing:
            self._ring.named(key_id)
            keys = self._ring.keys
            await asyncio.to_thread(_write, self._path, {each: key for each, key in keys.items() if each != key_id})
            keys.pop(key_id, None)

    async def get(self, key_id: str) -> Key:
        try:
            return self._ring.keys[key_id]
        except KeyError:
            raise NotFound(f"{self._path} has no key {key_id!r}") from None

    async def list(self) -> Sequence[Key]:
        return self._ring.listed()

    async def sealing_secret(self, label: str) -> bytes:
        _ = self._ring.keys  # raises when closed
        async with self._writing:
            root = await asyncio.to_thread(_sealing_root, self._path.with_name(f"{self._path.stem}-sealing.key"))
        return software.derived(root, label)

    async def close(self) -> None:
        self._ring.close()
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)


def _open(path: Path) -> tuple[int | None, dict[str, software.SoftwareKey]]:
    """The lock on the file, and its keys. Each of two processes would write the file without the other's new keys."""
    try:
        held = lock(path)
    except BlockingIOError as error:
        raise Refused(f"another process uses the key file {path}; stop it, or give this one its own") from error
    except OSError:
        # Nobody writes here, this process included; keys that are there already can be used all the same.
        return None, _read(path)
    try:
        return held, _read(path)
    except BaseException:
        os.close(held)
        raise


def _read(path: Path) -> dict[str, software.SoftwareKey]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise PermanentlyUnusable(f"the key file {path} cannot be read: {error.strerror}") from error
    try:
        stored = msgspec.json.decode(data, type=_File)
        return {key_id: software.load(key_id, pkcs8) for key_id, pkcs8 in stored.keys.items()}
    except (msgspec.MsgspecError, SpireError) as error:
        raise Corrupt(
            f"the key file {path} is damaged ({error}); it was left as it is: "
            "restore it from a backup, or move it away to start with new keys"
        ) from error


def _write(path: Path, keys: dict[str, software.SoftwareKey]) -> None:
    content = _File(keys={key_id: key.private_key for key_id, key in keys.items()})
    try:
        write_atomically(path, msgspec.json.encode(content), mode=0o600)
    except OSError as error:
        raise PermanentlyUnusable(f"the key file {path} cannot be written: {error.strerror}") from error


def _sealing_root(path: Path) -> bytes:
    try:
        root = path.read_bytes()
    except FileNotFoundError:
        root = secrets.token_bytes(_ROOT_SIZE)
        try:
            write_atomically(path, root, mode=0o600)
        except OSError as error:
            raise PermanentlyUnusable(f"the sealing key {path} cannot be written: {error.strerror}") from error
    except OSError as error:
        raise PermanentlyUnusable(f"the sealing key {path} cannot be read: {error.strerror}") from error
    if len(root) != _ROOT_SIZE:
        raise Corrupt(f"the sealing key {path} is damaged: move it away to have a new one made")
    return root


async def load_server(configuration: ServerConfiguration, _context: PluginContext) -> KeyManager:
    return await DiskKeyManager.open(Path(configuration.keys_path))


async def load_agent(configuration: AgentConfiguration, _context: PluginContext) -> KeyManager:
    return await DiskKeyManager.open(Path(configuration.directory) / "keys.json")
