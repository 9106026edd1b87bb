"""KeyManager plugins of others, hosted by plugins.external: what they answer is checked before it is believed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import ClassVar, Final, TypeVar

from google.protobuf.message import Message

from generated.spire.plugin.server.keymanager.v1 import keymanager_pb2 as api
from keystores import errors, public_keys
from operations.errors import SpireError
from operations.quoting import quote
from plugins.external.plugin import Plugin
from plugins.keymanager import Hash, Key, KeyType, Scheme
from transport.status import Code, RpcError

R = TypeVar("R", bound=Message)

TIMEOUT: Final = 30.0
"""Seconds of one call, as in SPIRE."""

SIGNATURES_AT_ONCE: Final = 16
INLINE_CHECKS: Final = 8
"""Signatures that are verified on the loop; more are worth a thread."""

_KEY_TYPES: Final = {
    KeyType.EC_P256: api.EC_P256,
    KeyType.EC_P384: api.EC_P384,
    KeyType.RSA_2048: api.RSA_2048,
    KeyType.RSA_4096: api.RSA_4096,
}
_HASHES: Final = {Hash.SHA256: api.SHA256, Hash.SHA384: api.SHA384, Hash.SHA512: api.SHA512}
_SALT_AS_LONG_AS_THE_HASH: Final = -1


class NotFound(RpcError, errors.NotFound):
    """The plugin knows no such key."""


class InvalidArgument(RpcError, errors.InvalidArgument):
    """The plugin takes no such input."""


class Unsupported(RpcError, errors.Unsupported):
    """The plugin has no such ability."""


class TemporarilyUnavailable(RpcError, errors.TemporarilyUnavailable):
    """The plugin has ended, is slow, or says so itself."""


class PermanentlyUnusable(RpcError, errors.PermanentlyUnusable):
    """The plugin lies, or failed in a way that it does not expect to pass."""


_KINDS: Final[dict[Code, type[RpcError]]] = {
    Code.NOT_FOUND: NotFound,
    Code.INVALID_ARGUMENT: InvalidArgument,
    Code.UNIMPLEMENTED: Unsupported,
    Code.CANCELLED: TemporarilyUnavailable,
    Code.DEADLINE_EXCEEDED: TemporarilyUnavailable,
    Code.RESOURCE_EXHAUSTED: TemporarilyUnavailable,
    Code.ABORTED: TemporarilyUnavailable,
    Code.UNAVAILABLE: TemporarilyUnavailable,
}


def _of_key_store(error: RpcError) -> RpcError:
    """The same status as one of the key stores' errors."""
    return _KINDS.get(error.code, PermanentlyUnusable)(error.code, error.message, error.details)


class ExternalKey:
    def __init__(self, manager: _ExternalKeyManager, key_id: str, fingerprint: str, public_key: bytes) -> None:
        """Raises Unsupported and InvalidArgument for a public key that is none of ours."""
        self._verifier = public_keys.from_der(public_key)
        self.id: Final = key_id
        self.key_type: Final = public_keys.key_type_of(self._verifier)
        self.public_key: Final = public_key
        self._fingerprint = fingerprint
        self._manager = manager

    async def sign(self, digest: bytes, scheme: Scheme) -> bytes:
        [signature] = await self.sign_batch([digest], scheme)
        return signature

    async def sign_batch(self, digests: Sequence[bytes], scheme: Scheme) -> list[bytes]:
        """One call for each digest, several at a time; all or nothing."""
        public_keys.check_digests(digests, scheme)
        turns = asyncio.Semaphore(SIGNATURES_AT_ONCE)

        async def one(digest: bytes) -> bytes:
            async with turns:
                return await self._sign(digest, scheme)

        calls = [asyncio.ensure_future(one(digest)) for digest in digests]
        try:
            signatures = await asyncio.gather(*calls)
        finally:
            for call in calls:
                call.cancel()
        if len(digests) <= INLINE_CHECKS:
            public_keys.verify(self._verifier, digests, signatures, scheme)
        else:
            await asyncio.to_thread(public_keys.verify, self._verifier, digests, signatures, scheme)
        return signatures

    async def _sign(self, digest: bytes, scheme: Scheme) -> bytes:
        manager = self._manager
        response = await manager.call("SignData", self._request(digest, scheme), api.SignDataResponse)
        if not response.signature:
            raise manager.fault("plugin returned empty signature data")
        if response.key_fingerprint != self._fingerprint:
            raise manager.fault(
                f"fingerprint {quote(self._fingerprint)} on key {quote(self.id)} does not match "
                f"{quote(response.key_fingerprint)}"
            )
        return response.signature

    def _request(self, digest: bytes, scheme: Scheme) -> api.SignDataRequest:
        hash_ = _HASHES[scheme.hash]
        if not scheme.pss:
            return api.SignDataRequest(key_id=self.id, data=digest, hash_algorithm=hash_)
        options = api.SignDataRequest.PSSOptions(salt_length=_SALT_AS_LONG_AS_THE_HASH, hash_algorithm=hash_)
        return api.SignDataRequest(key_id=self.id, data=digest, pss_options=options)


class _ExternalKeyManager:
    """The messages of servers' and agents' plugins are the same byte for byte: the servers' serve for both."""

    SERVICE: ClassVar[str]

    def __init__(self, plugin: Plugin) -> None:
        self._plugin = plugin
        self._closed = False

    async def generate(self, key_id: str, key_type: KeyType) -> Key:
        if not key_id:
            raise errors.InvalidArgument("a key needs an id")
        request = api.GenerateKeyRequest(key_id=key_id, key_type=_KEY_TYPES[key_type])
        response = await self.call("GenerateKey", request, api.GenerateKeyResponse)
        key = self._key(key_id, response.public_key if response.HasField("public_key") else None)
        if key.key_type is not key_type:
            raise self.fault(
                f"plugin generated a key of type {key.key_type.value} for {quote(key_id)}, not {key_type.value}"
            )
        return key

    async def get(self, key_id: str) -> Key:
        response = await self.call("GetPublicKey", api.GetPublicKeyRequest(key_id=key_id), api.GetPublicKeyResponse)
        if not response.HasField("public_key"):
            raise _of_key_store(self._plugin.error(Code.NOT_FOUND, f"key {quote(key_id)} not found"))
        return self._key(key_id, response.public_key)

    async def list(self) -> Sequence[Key]:
        """Keys of types that SPIRE never makes are others' business, and left out."""
        response = await self.call("GetPublicKeys", api.GetPublicKeysRequest(), api.GetPublicKeysResponse)
        keys: list[Key] = []
        for public_key in response.public_keys:
            try:
                keys.append(self._key(public_key.id, public_key))
            except errors.Unsupported as error:
                self._plugin.log.debug("A key of the plugin is left out", key_id=public_key.id, error=error)
        return keys

    async def close(self) -> None:
        self._closed = True
        await self._plugin.close()

    async def call(self, method: str, request: Message, response: type[R]) -> R:
        """Raises the errors of this module."""
        if self._closed:
            raise errors.TemporarilyUnavailable("the key manager is closed")
        try:
            return await self._plugin.call(f"/{self.SERVICE}/{method}", request, response, timeout=TIMEOUT)
        except RpcError as error:
            raise _of_key_store(error) from error

    def fault(self, message: str) -> RpcError:
        """What the plugin answered is wrong."""
        return _of_key_store(self._plugin.error(Code.INTERNAL, message))

    def _key(self, key_id: str, public_key: api.PublicKey | None) -> ExternalKey:
        if public_key is None:
            raise self.fault(f"plugin response empty for key {quote(key_id)}")
        if public_key.id != key_id:
            raise self.fault(f"plugin response has unexpected key id {quote(public_key.id)} for key {quote(key_id)}")
        if not public_key.pkix_data:
            raise self.fault(f"plugin response missing public key PKIX data for key {quote(key_id)}")
        try:
            return ExternalKey(self, key_id, public_key.fingerprint, public_key.pkix_data)
        except errors.Unsupported:
            raise
        except SpireError as error:
            raise self.fault(f"unable to parse public key PKIX data for key {quote(key_id)}: {error}") from error


class ServerKeyManager(_ExternalKeyManager):
    SERVICE = "spire.plugin.server.keymanager.v1.KeyManager"


class AgentKeyManager(_ExternalKeyManager):
    SERVICE = "spire.plugin.agent.keymanager.v1.KeyManager"
