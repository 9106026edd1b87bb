"""The KeyManager over a token: ids, the durable mapping, checked signatures, and the end of unused keys."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric import ec

from keystores import public_keys
from keystores.errors import InvalidArgument, KeyStoreError, NotFound, Refused
from keystores.pkcs11 import configuration as settings
from keystores.pkcs11 import encoding, mapping
from keystores.pkcs11.connection import Connection
from keystores.pkcs11.mapping import MappedKey, Mapping
from keystores.pkcs11.pin import Pin
from keystores.pkcs11.profiles import Profile, profile
from keystores.pkcs11.worker import Beat, Work, Worker
from plugins.keymanager import Key, KeyManager, KeyType, Scheme

if TYPE_CHECKING:
    from keystores.pkcs11.module import TokenKey, TokenSession
    from operations.logs import Logger
    from plugins.catalog import PluginContext

CKA_ID_SIZE = 20
"""Random bytes: no other key will have them."""
KEY_ID_LIMIT = 200
GENERATION_PATIENCE = 25.0
"""Seconds; RSA keys take their time in hardware."""
DISPOSAL_INTERVAL = 60.0
INLINE_CHECKS = 4
SERVER_KEYS, AGENT_KEYS = 8, 4


@dataclass(frozen=True, slots=True)
class Policy:
    """What one key manager may do in the token. `grace` in seconds; `limit` on its keys, retired ones included."""

    namespace: str
    limit: int
    grace: float
    shared: bool
    profile: Profile


class Pkcs11Key:
    """A `Key` whose private half is in the token."""

    def __init__(self, worker: Worker, key_id: str, mapped: MappedKey) -> None:
        self.id = key_id
        self.key_type = mapped.key_type
        self.public_key = mapped.public_key
        self._cka_id = bytes.fromhex(mapped.cka_id)
        self._verifier = public_keys.from_der(mapped.public_key)
        self._worker = worker

    async def sign(self, digest: bytes, scheme: Scheme) -> bytes:
        [signature] = await self.sign_batch([digest], scheme)
        return signature

    async def sign_batch(self, digests: Sequence[bytes], scheme: Scheme) -> list[bytes]:
        public_keys.check_digests(digests, scheme)
        if not digests:
            return []
        raw = await self._worker.call(lambda connection, beat: self._sign(connection, beat, digests, scheme))
        if len(digests) <= INLINE_CHECKS:
            return self._checked(digests, raw, scheme)
        # Meanwhile the token signs for others. Checking in step with the signing costs more CPU than it saves time.
        return await asyncio.to_thread(self._checked, digests, raw, scheme)

    def _sign(self, connection: Connection, beat: Beat, digests: Sequence[bytes], scheme: Scheme) -> list[bytes]:
        def collect(session: TokenSession) -> list[bytes]:
            signatures: list[bytes] = []
            for signature in session.sign(self._cka_id, self.key_type, digests, scheme):
                signatures.append(signature)
                beat()
            return signatures

        return connection.run(collect)

    def _checked(self, digests: Sequence[bytes], raw: Sequence[bytes], scheme: Scheme) -> list[bytes]:
        """The signatures as DER, none of which leaves unverified: a device's fault must not become a CA's."""
        signatures = list(raw)
        if isinstance(self._verifier, ec.EllipticCurvePublicKey):
            signatures = [encoding.ecdsa_signature(signature, self.key_type) for signature in raw]
        public_keys.verify(self._verifier, digests, signatures, scheme)
        return signatures


class Pkcs11KeyManager:
    def __init__(
        self, worker: Worker, path: Path, mapped: Mapping, policy: Policy, log: Logger, held: AsyncExitStack
    ) -> None:
        self._worker = worker
        self._path = path
        self._mapping = mapped
        self._policy = policy
        self._log = log
        self._held = held
        self._changing = asyncio.Lock()
        self._keys = {key_id: Pkcs11Key(worker, key_id, key) for key_id, key in mapped.keys.items()}
        self._disposal = asyncio.create_task(self._dispose_regularly())

    @classmethod
    async def open(cls, worker: Worker, path: Path, policy: Policy, log: Logger) -> Pkcs11KeyManager:
        """Log in, and bring mapping and token together. Takes the worker over; on an error it is closed."""
        async with AsyncExitStack() as held:
            held.push_async_callback(worker.close)
            held.enter_context(mapping.locked(path))
            stored = await asyncio.to_thread(mapping.read, path)
            found = await worker.call(lambda connection, _beat: _list(connection, policy.namespace))
            now = int(time.time())
            reconciled = mapping.reconcile(stored, found, policy.namespace, now, shared=policy.shared)
            if reconciled.mapping != stored:
                await asyncio.to_thread(mapping.write, path, reconciled.mapping)
            for key_id in reconciled.adopted:
                log.warning("keys_path was gone; adopted the token's key by its label", key_id=key_id, path=str(path))
            for orphan in reconciled.orphans:
                log.info("Retired a key that nothing refers to", key_id=orphan.key_id, cka_id=orphan.cka_id)
            return cls(worker, path, reconciled.mapping, policy, log, held.pop_all())

    async def generate(self, key_id: str, key_type: KeyType) -> Key:
        if not key_id or len(key_id) > KEY_ID_LIMIT or key_id.endswith(mapping.RETIRED_SUFFIX):
            raise InvalidArgument(f"{key_id!r} cannot be a key's id")
        # A key that exists must reach the mapping, whether or not the caller still waits for it.
        return await asyncio.shield(asyncio.ensure_future(self._generate(key_id, key_type)))

    async def _generate(self, key_id: str, key_type: KeyType) -> Key:
        async with self._changing:
            await self._make_room(key_id)
            cka_id = secrets.token_bytes(CKA_ID_SIZE)
            label = mapping.label(self._policy.namespace, key_id)

            def generate(connection: Connection, _beat: Beat) -> bytes:
                connection.run(lambda session: session.check())
                return connection.run(
                    lambda session: session.generate(cka_id, label, key_type, self._policy.profile), repeatable=False
                )

            public_key = await self._worker.call(generate, patience=GENERATION_PATIENCE)
            former = self._mapping.keys.get(key_id)
            made = MappedKey(cka_id=cka_id.hex(), key_type=key_type, public_key=public_key)
            await self._name(key_id, made)
            key = self._keys[key_id] = Pkcs11Key(self._worker, key_id, made)
            if former is not None:
                await self._mark_retired(key_id, former)
                if not self._policy.shared:
                    await self._dispose(self._policy.limit)
            return key

    async def get(self, key_id: str) -> Key:
        self._worker.check_open()
        try:
            return self._keys[key_id]
        except KeyError:
            raise NotFound(f"{self._path} has no key {key_id!r}") from None

    async def list(self) -> Sequence[Key]:
        self._worker.check_open()
        return tuple(self._keys.values())

    async def close(self) -> None:
        self._disposal.cancel()
        async with self._changing:
            await self._held.aclose()

    async def _name(self, key_id: str, made: MappedKey) -> None:
        """Write down the new key. Where that fails it goes again: a full disk must not fill the token too."""
        try:
            await self._remember(self._mapping.with_key(key_id, made, int(time.time())))
        except KeyStoreError:
            stored = await asyncio.to_thread(mapping.read, self._path)
            if stored == self._mapping or (stored is None and not self._mapping.keys):
                try:
                    await self._worker.call(_destroyer(bytes.fromhex(made.cka_id)))
                except KeyStoreError as error:
                    self._log.warning("A key that could not be written down is left", cka_id=made.cka_id, error=error)
            raise

    async def _remember(self, changed: Mapping) -> None:
        await asyncio.to_thread(mapping.write, self._path, changed)
        self._mapping = changed

    async def _make_room(self, key_id: str) -> None:
        """Destroy retired keys until one more fits. Raises Refused when current ones alone fill the token's share."""
        policy = self._policy
        if policy.shared:
            return
        if len(self._mapping.keys) >= policy.limit and key_id not in self._mapping.keys:
            raise Refused(f"{policy.limit} keys are in use, and no more are kept in the token under one namespace")
        await self._dispose(policy.limit - 1)

    async def _mark_retired(self, key_id: str, former: MappedKey) -> None:
        """Tell people, and a later adoption, that the label's key is another one. Not every token can."""
        label = mapping.label(self._policy.namespace, key_id) + mapping.RETIRED_SUFFIX
        cka_id = bytes.fromhex(former.cka_id)
        try:
            await self._worker.call(
                lambda connection, _beat: connection.run(lambda session: session.relabel(cka_id, label))
            )
        except KeyStoreError as error:
            self._log.warning("The replaced key keeps its label", key_id=key_id, cka_id=former.cka_id, error=str(error))

    async def _dispose(self, limit: int) -> None:
        """Destroy the keys that are due; the mapping forgets each after it is gone. Needs `_changing`."""
        for key in self._mapping.due(int(time.time()), self._policy.grace, limit):
            await self._worker.call(_destroyer(bytes.fromhex(key.cka_id)))
            await self._remember(self._mapping.without_retired(key.cka_id))
            self._log.info("Destroyed an unused key", key_id=key.key_id, cka_id=key.cka_id)

    async def _dispose_regularly(self) -> None:
        while not self._policy.shared:
            try:
                async with self._changing:
                    await self._dispose(self._policy.limit)
            except KeyStoreError as error:
                self._log.warning("Unused keys were not destroyed yet", error=str(error))
            await asyncio.sleep(DISPOSAL_INTERVAL)


def _list(connection: Connection, namespace: str) -> Sequence[TokenKey]:
    connection.open()
    return connection.run(lambda session: session.keys(f"{namespace}/"))


def _destroyer(cka_id: bytes) -> Work[None]:
    return lambda connection, _beat: connection.run(lambda session: session.destroy(cka_id))


async def _load(
    configuration: settings.Configuration, context: PluginContext, default_namespace: str, limit: int
) -> KeyManager:
    name = settings.token_name(configuration)
    path = settings.keys_path(configuration, context.data_dir)
    pin = Pin.configured(
        configuration.pin_file, configuration.pin_credential, path.with_name(f"{path.name}.pin-refused")
    )
    policy = Policy(
        namespace=settings.namespace(configuration, default_namespace),
        limit=limit,
        grace=settings.grace(configuration).total_seconds(),
        shared=configuration.shared_keys,
        profile=profile(configuration.profile),
    )
    worker = Worker(lambda: Connection(configuration.module_path, name, pin))
    return await Pkcs11KeyManager.open(worker, path, policy, context.log)


async def load_server(configuration: settings.Configuration, context: PluginContext) -> KeyManager:
    """Raises the errors of keystores.errors and ConfigurationError, each one line that names what to correct."""
    return await _load(configuration, context, "server", SERVER_KEYS)


async def load_agent(configuration: settings.Configuration, context: PluginContext) -> KeyManager:
    """As `load_server`, for an agent's smaller number of keys."""
    return await _load(configuration, context, "agent", AGENT_KEYS)
