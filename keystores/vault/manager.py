"""KeyManager "hashicorp_vault": keys in a Vault's transit engine, named and kept as SPIRE 1.16 does it.

A key of the engine is named `<server's id>-<UUID>-<key id>`, so a server can be taken over with its keys. A key that
another took the id of is deleted, now or by the next start.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import uuid
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from cryptography.hazmat.primitives import serialization

from keystores import errors, public_keys
from keystores.vault.client import Data, VaultClient, below
from keystores.vault.configuration import VaultConfiguration, vault_of
from operations.errors import ConfigurationError, SpireError
from operations.files import write_atomically
from operations.logs import Logger
from operations.quoting import quote
from plugins.keymanager import Hash, Key, KeyManager, KeyType, Scheme

if TYPE_CHECKING:
    from plugins.catalog import PluginContext

BATCH: Final = 250
"""Signatures that are asked for in one request."""

MOST_KEYS: Final = 1000
DELETE_AGAIN: Final = (1.0, 60.0)
"""Seconds to the next try of a deletion that failed: the first time, and at most."""

_HASHES: Final = {Hash.SHA256: "sha2-256", Hash.SHA384: "sha2-384", Hash.SHA512: "sha2-512"}
_TYPES: Final = {
    KeyType.EC_P256: "ecdsa-p256",
    KeyType.EC_P384: "ecdsa-p384",
    KeyType.RSA_2048: "rsa-2048",
    KeyType.RSA_4096: "rsa-4096",
}
# Not every Vault takes a hash for ECDSA that is not the curve's, and what is signed is hashed already.
_CURVE_HASHES: Final = {KeyType.EC_P256: "sha2-256", KeyType.EC_P384: "sha2-384"}
_NAME: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_SIGNATURE: Final = re.compile(r"vault:v[0-9]+:(.+)")
_UUID: Final = 36
_NOTHING: Data = {}


class Configuration(VaultConfiguration, frozen=True, kw_only=True, forbid_unknown_fields=True):
    key_identifier_file: str = ""
    key_identifier_value: str = ""
    transit_engine_path: str = "transit"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.key_identifier_file and self.key_identifier_value:
            raise ValueError("only one of 'key_identifier_file' or 'key_identifier_value' should be provided")
        if not self.key_identifier_file and not self.key_identifier_value:
            raise ValueError("one of 'key_identifier_file' or 'key_identifier_value' must be provided")
        if self.key_identifier_value and not _NAME.fullmatch(self.key_identifier_value):
            raise ValueError("key_identifier_value: a transit key's name has letters, digits, '_', '.' and '-' only")


class VaultKey:
    """The version of a key that was its latest when it was found; it signs on after somebody rotates the key there."""

    def __init__(self, manager: VaultKeyManager, key_id: str, name: str, version: int, public_key: bytes) -> None:
        """Raises Unsupported and InvalidArgument for a public key that is none of ours."""
        self._verifier = public_keys.from_der(public_key)
        self.id: Final = key_id
        self.name: Final = name
        self.key_type: Final = public_keys.key_type_of(self._verifier)
        self.public_key: Final = public_key
        self._version = version
        self._manager = manager

    async def sign(self, digest: bytes, scheme: Scheme) -> bytes:
        [signature] = await self.sign_batch([digest], scheme)
        return signature

    async def sign_batch(self, digests: Sequence[bytes], scheme: Scheme) -> list[bytes]:
        public_keys.check_digests(digests, scheme)
        parts = [digests[start : start + BATCH] for start in range(0, len(digests), BATCH)]
        signatures = [each for part in parts for each in await self._sign(part, scheme)]
        await asyncio.to_thread(public_keys.verify, self._verifier, digests, signatures, scheme)
        return signatures

    async def _sign(self, digests: Sequence[bytes], scheme: Scheme) -> list[bytes]:
        body: dict[str, Any] = {
            "batch_input": [{"input": base64.b64encode(digest).decode()} for digest in digests],
            "prehashed": True,
            "marshaling_algorithm": "asn1",
            "key_version": self._version,
        }
        if self.key_type not in _CURVE_HASHES:
            body["signature_algorithm"] = "pss" if scheme.pss else "pkcs1v15"
            body["salt_length"] = "hash"
        algorithm = _CURVE_HASHES.get(self.key_type, _HASHES[scheme.hash])
        try:
            answer = await self._manager.client.write(self._manager.path("sign", self.name, algorithm), body)
        except (errors.NotFound, errors.InvalidArgument) as error:
            raise errors.PermanentlyUnusable(f"key {quote(self.id)} cannot sign: {error}") from error
        return _signatures(answer, len(digests))


class VaultKeyManager:
    def __init__(self, client: VaultClient, mount: str, server_id: str, log: Logger) -> None:
        self._client = client
        self._mount = mount
        self._server_id = server_id
        self._log = log
        self._keys: dict[str, VaultKey] = {}
        self._generating = asyncio.Lock()
        self._stale: list[str] = []
        self._deleting: asyncio.Task[None] | None = None
        self._closed = False

    @classmethod
    async def open(cls, client: VaultClient, mount: str, server_id: str, log: Logger) -> VaultKeyManager:
        """Find the server's keys. Raises keystores.errors; the client is closed then."""
        manager = cls(client, mount, server_id, log)
        try:
            await manager._find()
        except BaseException:
            await manager.close()
            raise
        return manager

    @property
    def client(self) -> VaultClient:
        if self._closed:
            raise errors.TemporarilyUnavailable("the key manager is closed")
        return self._client

    def path(self, *parts: str) -> str:
        return below(self._mount, *parts)

    async def generate(self, key_id: str, key_type: KeyType) -> Key:
        if not key_id:
            raise errors.InvalidArgument("a key needs an id")
        # A key that was made must have its name here, whether its caller still waits or not.
        return await asyncio.shield(asyncio.ensure_future(self._generate(key_id, key_type)))

    async def _generate(self, key_id: str, key_type: KeyType) -> Key:
        async with self._generating:
            name = f"{self._server_id}-{uuid.uuid4()}-{key_id}"
            if not _NAME.fullmatch(name):
                raise errors.InvalidArgument(f"{quote(key_id)} cannot be in the name of a transit key")
            body = {"type": _TYPES[key_type], "exportable": False, "auto_rotate_period": 0}
            await self.client.write(self.path("keys", name), body)
            key, _ = await self._read(key_id, name)
            if key.key_type is not key_type:
                raise errors.PermanentlyUnusable(f"Vault made a key of type {key.key_type.value}, not {key_type.value}")
            before = self._keys.get(key_id)
            self._keys[key_id] = key
            if before is not None:
                self._delete(before.name)
            return key

    async def get(self, key_id: str) -> Key:
        _ = self.client  # raises when closed
        if key_id not in self._keys:
            raise errors.NotFound(f"Vault has no key {quote(key_id)} of this server")
        return self._keys[key_id]

    async def list(self) -> Sequence[Key]:
        _ = self.client  # raises when closed
        return tuple(self._keys.values())

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._deleting is not None:
            self._deleting.cancel()
            await asyncio.gather(self._deleting, return_exceptions=True)
        await self._client.close()

    async def _find(self) -> None:
        """Of two keys for one id, as a restart amid a rotation leaves them, the younger is kept."""
        found: dict[str, tuple[datetime, VaultKey]] = {}
        for name in await self._names():
            key_id = key_id_of(name, self._server_id)
            if key_id is None:
                continue
            key, made = await self._read(key_id, name)
            other = found.get(key_id)
            if other is None or made > other[0]:
                found[key_id] = (made, key)
            stale = None if other is None else other[1] if made > other[0] else key
            if stale is not None:
                self._log.warning("Stale key found on startup, scheduling for deletion", key_name=stale.name)
                self._delete(stale.name)
        self._keys = {key_id: key for key_id, (_, key) in found.items()}

    async def _names(self) -> Sequence[str]:
        try:
            listed = (await self.client.read(f"{self.path('keys')}?list=true")).get("keys")
        except errors.NotFound:
            return ()  # there is no key yet
        if not isinstance(listed, list):
            raise errors.PermanentlyUnusable("Vault listed the transit engine's keys without their names")
        names = [name for name in cast("list[object]", listed) if isinstance(name, str)]
        if sum(name.startswith(f"{self._server_id}-") for name in names) > MOST_KEYS:
            raise errors.PermanentlyUnusable(
                f"the transit engine has more than {MOST_KEYS} keys of this server: delete those that are not used"
            )
        return names

    async def _read(self, key_id: str, name: str) -> tuple[VaultKey, datetime]:
        """A key, and when it was made. Raises PermanentlyUnusable for one that is none of ours."""
        found = await self.client.read(self.path("keys", name))
        try:
            version = found["latest_version"]
            current = found["keys"][str(version)]
            public_key = serialization.load_pem_public_key(current["public_key"].encode())
            der = public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
            return VaultKey(self, key_id, name, int(version), der), datetime.fromisoformat(current["creation_time"])
        except (LookupError, TypeError, ValueError, AttributeError, SpireError) as error:
            raise errors.PermanentlyUnusable(
                f"transit key {quote(name)} is no EC or RSA key that a server can use: {error}"
            ) from error

    def _delete(self, name: str) -> None:
        self._stale.append(name)
        if self._deleting is None or self._deleting.done():
            self._deleting = asyncio.create_task(self._delete_stale())

    async def _delete_stale(self) -> None:
        wait, longest = DELETE_AGAIN
        while self._stale:
            name = self._stale[0]
            try:
                await self.client.write(self.path("keys", name, "config"), {"deletion_allowed": True})
                await self.client.delete(self.path("keys", name))
            except (errors.NotFound, errors.InvalidArgument) as error:
                self._log.debug("A key that is not used any more is gone already", key_name=name, error=error)
            except SpireError as error:
                self._log.error("A key that is not used any more could not be deleted", key_name=name, error=error)
                await asyncio.sleep(wait)
                wait = min(wait * 2, longest)
                continue
            self._stale.remove(name)
            self._log.debug("Key deleted", key_name=name)


def key_id_of(name: str, server_id: str) -> str | None:
    """The id in a transit key's name; None for a key of somebody else."""
    rest = name.removeprefix(f"{server_id}-")
    if rest == name or len(rest) <= _UUID + 1 or rest[_UUID] != "-":
        return None
    return rest[_UUID + 1 :]


def _signatures(answer: Data, number: int) -> list[bytes]:
    results = answer.get("batch_results")
    if not isinstance(results, list) or len(cast("list[object]", results)) != number:
        raise errors.PermanentlyUnusable("Vault did not answer with a signature for each digest")
    return [_signature(each) for each in cast("list[object]", results)]


def _signature(result: object) -> bytes:
    found = cast("Data", result) if isinstance(result, dict) else _NOTHING
    match = _SIGNATURE.fullmatch(str(found.get("signature", "")))
    if match is None:
        raise errors.PermanentlyUnusable(f"Vault gave no signature: {str(found.get('error', 'it is missing'))[:200]}")
    try:
        return base64.b64decode(match[1], validate=True)
    except ValueError as error:
        raise errors.PermanentlyUnusable("Vault gave a signature that is no base64") from error


def _server_id(path: Path) -> str:
    """As in SPIRE: the UUID in the file, which is made where there is none. Blocks. Raises ConfigurationError."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        made = str(uuid.uuid4())
        try:
            write_atomically(path, made.encode(), mode=0o600)
        except OSError as error:
            raise ConfigurationError(f"key_identifier_file {path} cannot be written: {error.strerror}") from error
        return made
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ConfigurationError(f"key_identifier_file {path} cannot be read: {reason}") from error
    try:
        return str(uuid.UUID(text))
    except ValueError as error:
        raise ConfigurationError(
            f"key_identifier_file {path} has no UUID: restore it, or move it away to begin with new keys"
        ) from error


async def load(configuration: Configuration, context: PluginContext) -> KeyManager:
    vault = vault_of(configuration, os.environ)
    await asyncio.to_thread(vault.context)
    if vault.insecure_skip_verify:
        context.log.warning(
            "TLS verification of Vault certificates is skipped. This is only recommended for test environments."
        )
    server_id = configuration.key_identifier_value
    if not server_id:
        server_id = await asyncio.to_thread(_server_id, Path(configuration.key_identifier_file))
    mount = os.environ.get("VAULT_TRANSIT_ENGINE_PATH", configuration.transit_engine_path)
    return await VaultKeyManager.open(VaultClient(vault, os.environ, context.log), mount, server_id, context.log)
