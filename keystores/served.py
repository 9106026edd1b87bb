"""A key store as SPIRE's KeyManager plugin, for servers and for agents of others: the services behind the protocol.

Both programs' messages are the same byte for byte, so the servers' serve for both.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Final, Protocol

import msgspec

from generated.spire.plugin.agent.keymanager.v1 import keymanager_pb2 as agent_api
from generated.spire.plugin.server.keymanager.v1 import keymanager_pb2 as api
from generated.spire.service.common.config.v1 import config_pb2
from keystores.errors import InvalidArgument
from operations import logs
from operations.errors import ConfigurationError, SpireError
from operations.quoting import quote
from plugins.context import PluginContext
from plugins.keymanager import Hash, Key, KeyManager, KeyType, Scheme
from plugins.served import configuration
from plugins.served.plugin import Service
from transport.peer import Peer
from transport.router import Context, Handler
from transport.status import Code, RpcError

SERVER_HOST: Final = "spire.hostservice.server."
"""What the services begin with that servers, and only they, offer to their plugins."""

_SERVER: Final = api.DESCRIPTOR.services_by_name["KeyManager"]
_AGENT: Final = agent_api.DESCRIPTOR.services_by_name["KeyManager"]
_CONFIG: Final = config_pb2.DESCRIPTOR.services_by_name["Config"]

_KEY_TYPES: Final = {
    KeyType.EC_P256: api.EC_P256,
    KeyType.EC_P384: api.EC_P384,
    KeyType.RSA_2048: api.RSA_2048,
    KeyType.RSA_4096: api.RSA_4096,
}
_KEY_TYPES_BY_NUMBER: Final = {number: key_type for key_type, number in _KEY_TYPES.items()}
_HASHES: Final = {api.SHA256: Hash.SHA256, api.SHA384: Hash.SHA384, api.SHA512: Hash.SHA512}
_SALT_AS_LONG_AS_THE_HASH: Final = -1
_SALT_OF_ANY_LENGTH: Final = 0  # the signer's choice (crypto/rsa: PSSSaltLengthAuto)


class Role(Enum):
    """Whose key manager it is."""

    SERVER = "server"
    AGENT = "agent"


class KeyStore(Protocol):
    """A key store that can be served, and its settings."""

    name: ClassVar[str]
    model: ClassVar[type[msgspec.Struct]]
    """Of its configuration."""

    def check(self, configuration: msgspec.Struct) -> None:
        """Raises ConfigurationError for settings that cannot be used; no device is asked."""
        ...

    async def load(self, configuration: msgspec.Struct, context: PluginContext, role: Role) -> KeyManager:
        """Raises SpireError classes."""
        ...


@dataclass(frozen=True, slots=True)
class _Configured:
    data: str
    context: PluginContext
    manager: KeyManager


class KeyManagerPlugin:
    """A `plugins.served.plugin.Plugin`."""

    def __init__(self, store: KeyStore) -> None:
        self._store = store
        self._role = Role.SERVER
        self._configured: _Configured | None = None
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._changing = asyncio.Lock()

    def services(self) -> Sequence[Service]:
        keys: dict[str, Handler] = {
            "GenerateKey": self.generate_key,
            "GetPublicKey": self.get_public_key,
            "GetPublicKeys": self.get_public_keys,
            "SignData": self.sign_data,
        }
        return (
            (_SERVER, keys),
            (_AGENT, keys),
            (_CONFIG, {"Configure": self.configure, "Validate": self.validate}),
        )

    def introduce(self, host_services: Sequence[str]) -> Sequence[str]:
        """A SPIRE server offers services of its own, an agent only one that servers have, too (Metrics).

        So a server is known for certain, and told of the one service it can use: others it would warn of. Who offers
        less is told of both; it takes an agent's keys if it offers anything, and a server's if it is no SPIRE at all.
        """
        if any(name.startswith(SERVER_HOST) for name in host_services):
            return [_SERVER.full_name, _CONFIG.full_name]
        self._role = Role.AGENT if host_services else Role.SERVER
        return [_SERVER.full_name, _AGENT.full_name, _CONFIG.full_name]

    async def close(self) -> None:
        async with self._changing:
            await self._let_go()

    # Configuration

    async def configure(
        self, request: config_pb2.ConfigureRequest, _peer: Peer, _context: Context
    ) -> config_pb2.ConfigureResponse:
        """The first time, or anew. What cannot be used leaves what was in force."""
        with configuration.one_line():
            settings = self._read(request.hcl_configuration)
        context = PluginContext(
            trust_domain=request.core_configuration.trust_domain, data_dir=None, log=logs.get(self._store.name)
        )
        # A key may be in the making: whether or not the host still waits, this is done to its end.
        await asyncio.shield(asyncio.ensure_future(self._use(request.hcl_configuration, settings, context)))
        return config_pb2.ConfigureResponse()

    async def _use(self, data: str, settings: msgspec.Struct, context: PluginContext) -> None:
        async with self._changing:
            former = self._configured
            if former is not None and (former.data, former.context.trust_domain) == (data, context.trust_domain):
                return
            await self._let_go()  # two cannot have one keys_path
            try:
                with configuration.one_line():
                    self._configured = await self._open(data, settings, context)
            except SpireError:
                if former is not None:
                    await self._take_up_again(former)
                raise

    async def _open(self, data: str, settings: msgspec.Struct, context: PluginContext) -> _Configured:
        return _Configured(data, context, await self._store.load(settings, context, self._role))

    async def _take_up_again(self, former: _Configured) -> None:
        log = former.context.log.bind
        try:
            self._configured = await self._open(former.data, self._read(former.data), former.context)
        except SpireError as error:
            log(error=error).error("The former configuration cannot be taken up again")

    async def validate(
        self, request: config_pb2.ValidateRequest, _peer: Peer, _context: Context
    ) -> config_pb2.ValidateResponse:
        return configuration.validated(lambda: self._read(request.hcl_configuration))

    def _read(self, data: str) -> msgspec.Struct:
        settings = configuration.read(self._store.model, data, self._store.name)
        self._store.check(settings)
        return settings

    async def _let_go(self) -> None:
        """Wait for the calls that run, then close. Needs `_changing`."""
        former = self._configured
        if former is not None:
            await self._idle.wait()
            self._configured = None
            await former.manager.close()

    @asynccontextmanager
    async def _manager(self) -> AsyncGenerator[KeyManager]:
        """What is in force, kept for a call. Raises RpcError."""
        while self._changing.locked():
            async with self._changing:
                pass
        if self._configured is None:
            raise RpcError(Code.FAILED_PRECONDITION, "not configured")
        self._calls += 1
        self._idle.clear()
        try:
            yield self._configured.manager
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()

    # Keys

    async def generate_key(
        self, request: api.GenerateKeyRequest, _peer: Peer, _context: Context
    ) -> api.GenerateKeyResponse:
        _check_id(request.key_id)
        key_type = _KEY_TYPES_BY_NUMBER.get(request.key_type)
        if key_type is None:
            known = ", ".join(kind.value for kind in KeyType)
            raise InvalidArgument(f"key type is required: one of {known}")
        async with self._manager() as manager:
            key = await manager.generate(request.key_id, key_type)
        return api.GenerateKeyResponse(public_key=_public_key(key))

    async def get_public_key(
        self, request: api.GetPublicKeyRequest, _peer: Peer, _context: Context
    ) -> api.GetPublicKeyResponse:
        """Without a key where there is none, as SPIRE's own key managers answer."""
        _check_id(request.key_id)
        async with self._manager() as manager:
            found = [key for key in await manager.list() if key.id == request.key_id]
        return api.GetPublicKeyResponse(public_key=_public_key(found[0]) if found else None)

    async def get_public_keys(
        self, _request: api.GetPublicKeysRequest, _peer: Peer, _context: Context
    ) -> api.GetPublicKeysResponse:
        async with self._manager() as manager:
            return api.GetPublicKeysResponse(public_keys=[_public_key(key) for key in await manager.list()])

    async def sign_data(self, request: api.SignDataRequest, _peer: Peer, _context: Context) -> api.SignDataResponse:
        _check_id(request.key_id)
        scheme = _scheme(request)
        async with self._manager() as manager:
            key = await manager.get(request.key_id)
            signature = await key.sign(request.data, scheme)
        return api.SignDataResponse(signature=signature, key_fingerprint=_fingerprint(key))


def need_keys_path(path: str | None, name: str) -> None:
    """Raises ConfigurationError: a plugin is not told its host's data_dir, where built-in key managers have theirs."""
    if not path:
        raise ConfigurationError(
            f"{name}: keys_path must be configured: a plugin does not know the data_dir of its server or agent"
        )


def _check_id(key_id: str) -> None:
    if not key_id:
        raise InvalidArgument("key id is required")


def _public_key(key: Key) -> api.PublicKey:
    return api.PublicKey(
        id=key.id, type=_KEY_TYPES[key.key_type], pkix_data=key.public_key, fingerprint=_fingerprint(key)
    )


def _fingerprint(key: Key) -> str:
    """Which key it is, beyond its id; to the host any text will do."""
    return hashlib.sha256(key.public_key).hexdigest()


def _scheme(request: api.SignDataRequest) -> Scheme:
    """Raises InvalidArgument."""
    chosen = request.WhichOneof("signer_opts")
    if chosen is None:
        raise InvalidArgument("signer opts is required")
    pss = chosen == "pss_options"
    number = request.pss_options.hash_algorithm if pss else request.hash_algorithm
    if number == api.UNSPECIFIED_HASH_ALGORITHM:
        raise InvalidArgument("hash algorithm is required")
    hash_ = _HASHES.get(number)
    if hash_ is None:
        name = api.HashAlgorithm.Name(number) if number in api.HashAlgorithm.values() else str(number)
        raise InvalidArgument(f"unsupported hash algorithm {quote(name)}: use SHA256, SHA384 or SHA512")
    if pss:
        _check_salt(request.pss_options.salt_length, hash_)
    return Scheme(hash_, pss=pss)


def _check_salt(length: int, hash_: Hash) -> None:
    size = hashlib.new(hash_.value).digest_size
    if length not in (_SALT_AS_LONG_AS_THE_HASH, _SALT_OF_ANY_LENGTH, size):
        raise InvalidArgument(f"unsupported PSS salt length {length}: use {_SALT_AS_LONG_AS_THE_HASH}, the hash's")
