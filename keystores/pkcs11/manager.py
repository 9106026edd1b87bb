"""The KeyManager over a token: ids, the durable mapping, checked signatures, and the end of unused keys."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from keystores import public_keys, state
from keystores.errors import (
    InvalidArgument,
    KeyStoreError,
    NotFound,
    Refused,
    TemporarilyUnavailable,
)
from keystores.pkcs11 import configuration as settings
from keystores.pkcs11 import encoding, mapping
from keystores.pkcs11.device import Device
from keystores.pkcs11.inventory import Ledger, described, proof, records
from keystores.pkcs11.mapping import MappedKey, Mapping
from keystores.pkcs11.prompt import pins_of
from keystores.pkcs11.protocol import Generate, PublicParts
from keystores.pkcs11.secret_key import sealed
from keystores.pkcs11.tokens import Tokens
from plugins.keyinventory import KeyRecord, Proof
from plugins.keymanager import Key, KeyManager, KeyType, Scheme

if TYPE_CHECKING:
    from operations.logs import Logger
    from plugins.catalog import PluginContext

CKA_ID_SIZE = 20
"""Random bytes: no other key will have them."""
KEY_ID_LIMIT = 200
GENERATION_PATIENCE = 25.0
"""Seconds; RSA keys take their time in hardware."""
LARGE_KEY = 3
"""Times as patient with RSA keys of 4096 bits: their primes take luck, and small devices a minute."""
DISPOSAL_INTERVAL = 60.0
MOST_DOUBTFUL = 16
"""Keys whose making had no answer, to be destroyed; of more, the next start finds them by their labels."""
INLINE_CHECKS = 4
PIECE = 128
"""Digests that go to the token at once."""
SERVER_KEYS, AGENT_KEYS = 8, 4


@dataclass(frozen=True, slots=True)
class Policy:
    """What one key manager may do in the token. `grace` in seconds; `limit` on its keys, retired ones included."""

    namespace: str
    limit: int
    grace: float
    shared: bool


class Pkcs11Key:
    """A `Key` whose private half is in the token."""

    def __init__(self, tokens: Tokens, key_id: str, mapped: MappedKey) -> None:
        self.id = key_id
        self.key_type = mapped.key_type
        self.public_key = mapped.public_key
        self._mapped = mapped
        self.last_signature_at: int | None = None
        self._verifier = public_keys.from_der(mapped.public_key)
        self._tokens = tokens

    async def sign(self, digest: bytes, scheme: Scheme) -> bytes:
        [signature] = await self.sign_batch([digest], scheme)
        return signature

    async def sign_batch(self, digests: Sequence[bytes], scheme: Scheme) -> list[bytes]:
        public_keys.check_digests(digests, scheme)
        if len(digests) <= PIECE:
            return await self._sign_piece(digests, scheme) if digests else []
        # One piece is checked while the token signs the next.
        pieces = [digests[at : at + PIECE] for at in range(0, len(digests), PIECE)]
        signed = await asyncio.gather(*(self._sign_piece(piece, scheme) for piece in pieces))
        return [signature for piece in signed for signature in piece]

    async def _sign_piece(self, digests: Sequence[bytes], scheme: Scheme) -> list[bytes]:
        mechanism, payloads = encoding.signing(self.key_type, digests, scheme)

        async def check(raw: Sequence[bytes]) -> list[bytes]:
            if len(digests) <= INLINE_CHECKS:
                return self._checked(digests, raw, scheme)
            # Meanwhile the token signs for others.
            return await asyncio.to_thread(self._checked, digests, raw, scheme)

        signatures = await self._tokens.sign(self.id, self._mapped, mechanism, payloads, check)
        self.last_signature_at = int(time.time())
        return signatures

    def _checked(self, digests: Sequence[bytes], raw: Sequence[bytes], scheme: Scheme) -> list[bytes]:
        """The signatures as DER, none of which leaves unverified: a device's fault must not become a CA's."""
        signatures = list(raw)
        if isinstance(self._verifier, ec.EllipticCurvePublicKey):
            signatures = [encoding.ecdsa_signature(signature, self.key_type) for signature in raw]
        public_keys.verify(self._verifier, digests, signatures, scheme)
        return signatures


class Pkcs11KeyManager:
    def __init__(
        self, tokens: Tokens, path: Path, mapped: Mapping, policy: Policy, log: Logger, held: AsyncExitStack
    ) -> None:
        self._tokens = tokens
        self._path = path
        self._mapping = mapped
        self._policy = policy
        self._log = log
        self._held = held
        self._changing = asyncio.Lock()
        self._doubtful: deque[bytes] = deque(maxlen=MOST_DOUBTFUL)
        self._keys = {key_id: Pkcs11Key(tokens, key_id, key) for key_id, key in mapped.keys.items()}
        self._tasks = [asyncio.create_task(self._dispose_regularly())]

    @classmethod
    async def open(cls, tokens: Tokens, path: Path, policy: Policy, log: Logger) -> Pkcs11KeyManager:
        """Log in, and bring mapping and token together. Takes the tokens over; on an error they are closed."""
        async with AsyncExitStack() as held:
            held.push_async_callback(tokens.close)
            tokens.start()
            held.enter_context(state.locked(path, path))
            stored = await asyncio.to_thread(mapping.read, path)
            try:
                await tokens.primary.open()
            except (NotFound, TemporarilyUnavailable) as error:
                if stored is None or not tokens.has_clones:
                    raise
                log.warning("The primary token is away at the start; its clones sign", error=error)
                manager = cls(tokens, path, stored, policy, log, held.pop_all())
                tokens.primary.when_back.append(manager._reconcile_later)
                tokens.primary.suspect(error)
            else:
                current = await _reconciled(tokens, path, stored, policy, log)
                manager = cls(tokens, path, current, policy, log, held.pop_all())
            try:
                await tokens.open_clones(lambda: manager._mapping.keys)
            except BaseException:
                await manager.close()
                raise
            return manager

    def _reconcile_later(self) -> None:
        """Once, when a primary that was away at the start is there."""
        self._tokens.primary.when_back.remove(self._reconcile_later)
        self._tasks.append(asyncio.create_task(self._reconcile()))

    async def _reconcile(self) -> None:
        async with self._changing:
            try:
                self._mapping = await _reconciled(self._tokens, self._path, self._mapping, self._policy, self._log)
            except KeyStoreError as error:
                self._log.error("The primary token does not have what keys_path says", error=error)

    async def generate(self, key_id: str, key_type: KeyType) -> Key:
        if not key_id or len(key_id) > KEY_ID_LIMIT or key_id.endswith(mapping.RETIRED_SUFFIX):
            raise InvalidArgument(f"{key_id!r} cannot be a key's id")
        # A key that exists must reach the mapping, whether or not the caller still waits for it.
        return await asyncio.shield(asyncio.ensure_future(self._generate(key_id, key_type)))

    async def _generate(self, key_id: str, key_type: KeyType) -> Key:
        async with self._changing:
            await self._make_room(key_id)
            cka_id = secrets.token_bytes(CKA_ID_SIZE)
            public_key = await self._make(cka_id, mapping.label(self._policy.namespace, key_id), key_type)
            former = self._mapping.keys.get(key_id)
            made = MappedKey(cka_id=cka_id.hex(), key_type=key_type, public_key=public_key, created_at=int(time.time()))
            await self._name(key_id, made)
            key = self._keys[key_id] = Pkcs11Key(self._tokens, key_id, made)
            if former is not None:
                await self._mark_retired(key_id, former)
                await self._dispose_if_possible()
            self._tokens.compare(lambda: {key_id: made})
            return key

    async def _make(self, cka_id: bytes, label: str, key_type: KeyType) -> bytes:
        """A key pair in the primary token; its public key (DER). One whose making had no answer is destroyed first."""
        while self._doubtful:
            await self._tokens.destroy(self._doubtful[0])
            self._doubtful.popleft()
        wanted = Generate(
            cka_id,
            label,
            key_type.value,
            encoding.EC_PARAMETERS.get(key_type),
            public_keys.MODULUS_BITS.get(key_type),
        )
        patience = GENERATION_PATIENCE * (LARGE_KEY if key_type is KeyType.RSA_4096 else 1)
        try:
            parts = await self._tokens.primary.call(wanted, PublicParts, patience=patience, repeatable=False, rw=True)
        except KeyStoreError as error:
            # Whatever it says: some devices make a key and then fail. A call that had no turn made none.
            if type(error) is not TemporarilyUnavailable:
                self._doubtful.append(cka_id)
            raise
        public_key = encoding.public_key(parts)
        if public_key is None or public_keys.key_type_of(public_keys.from_der(public_key)) is not key_type:
            await self._tokens.destroy(cka_id)
            raise Refused(f"the token made a key that is not of type {key_type.value}; it was destroyed")
        return public_key

    async def get(self, key_id: str) -> Key:
        self._tokens.check_open()
        try:
            return self._keys[key_id]
        except KeyError:
            raise NotFound(f"{self._path} has no key {key_id!r}") from None

    async def list(self) -> Sequence[Key]:
        self._tokens.check_open()
        return tuple(self._keys.values())

    async def inventory(self) -> Sequence[KeyRecord]:
        device = self._tokens.primary
        return records(await described(device, self._mapping), self._ledger(), device)

    async def prove(self, key_id: str) -> Proof:
        self._tokens.check_open()
        key = await self.get(key_id)
        device = self._tokens.primary
        found = await described(device, self._mapping)
        cka_id = bytes.fromhex(self._mapping.keys[key_id].cka_id)
        return await proof(key, cka_id, found, self._ledger(), device)

    def _ledger(self) -> Ledger:
        signed_at = {key_id: key.last_signature_at for key_id, key in self._keys.items()}
        return Ledger(self._mapping, None if self._policy.shared else self._policy.grace, signed_at)

    async def dispose(self, handle: str) -> None:
        await asyncio.shield(asyncio.ensure_future(self._end(handle.lower(), withdrawing=False)))

    async def withdraw(self, handle: str) -> None:
        await asyncio.shield(asyncio.ensure_future(self._end(handle.lower(), withdrawing=True)))

    async def _end(self, cka_id: str, *, withdrawing: bool) -> None:
        """Destroy a key. The mapping has it as retired until it is gone: a crash leaves one that is due."""
        self._tokens.check_open()
        async with self._changing:
            key_id = self._mapping.id_of(cka_id)
            if key_id is None and (withdrawing or all(key.cka_id != cka_id for key in self._mapping.retired)):
                raise NotFound(f"{self._path} has no {'' if withdrawing else 'retired '}key {cka_id!r}")
            if self._policy.shared:
                raise Refused("keys of this namespace are shared (shared_keys), and others may use this one")
            if key_id is not None:
                if not withdrawing:
                    raise Refused(f"key {key_id!r} has its name still, and is kept")
                await self._remember(self._mapping.without_key(key_id, int(time.time())))
                del self._keys[key_id]
            await self._tokens.destroy(bytes.fromhex(cka_id))
            await self._remember(self._mapping.without_retired(cka_id))
            self._log.info("Destroyed a key by an operator's wish", key_id=key_id, cka_id=cka_id)

    async def sealing_secret(self, label: str) -> bytes:
        return await asyncio.shield(asyncio.ensure_future(self._sealing_secret(label)))

    async def _sealing_secret(self, label: str) -> bytes:
        self._tokens.check_open()
        async with self._changing:
            made = await sealed(self._tokens, self._mapping, label, self._log)
            if made.cka_id.hex() != self._mapping.sealing_key:
                await self._remember(msgspec.structs.replace(self._mapping, sealing_key=made.cka_id.hex()))
        return made.secret

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
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
                    await self._tokens.destroy(bytes.fromhex(made.cka_id))
                except KeyStoreError as error:
                    self._log.warning("A key that could not be written down is left", cka_id=made.cka_id, error=error)
            raise

    async def _remember(self, changed: Mapping) -> None:
        await asyncio.to_thread(state.write, self._path, changed)
        self._mapping = changed

    async def _make_room(self, key_id: str) -> None:
        """Destroy retired keys until one more fits. Raises Refused when current ones alone fill the token's share."""
        policy = self._policy
        if policy.shared:
            return
        if len(self._mapping.keys) >= policy.limit and key_id not in self._mapping.keys:
            raise Refused(f"{policy.limit} keys are in use, and no more are kept in the token under one namespace")
        if len(self._mapping.keys) + len(self._mapping.retired) >= policy.limit:
            await self._dispose(policy.limit - 1)

    async def _mark_retired(self, key_id: str, former: MappedKey) -> None:
        """Tell people, and a later adoption, that the label's key is another one. Not every token can."""
        label = mapping.label(self._policy.namespace, key_id) + mapping.RETIRED_SUFFIX
        cka_id = bytes.fromhex(former.cka_id)
        try:
            await self._tokens.relabel(cka_id, label)
        except KeyStoreError as error:
            self._log.warning("The replaced key keeps its label", key_id=key_id, cka_id=former.cka_id, error=str(error))

    async def _dispose(self, limit: int) -> None:
        """Destroy the keys that are due; the mapping forgets each after it is gone. Needs `_changing`."""
        for key in self._mapping.due(int(time.time()), self._policy.grace, limit):
            await self._tokens.destroy(bytes.fromhex(key.cka_id))
            await self._remember(self._mapping.without_retired(key.cka_id))
            self._log.info("Destroyed an unused key", key_id=key.key_id, cka_id=key.cka_id)

    async def _dispose_if_possible(self) -> None:
        """As `_dispose`, now or later. Needs `_changing`."""
        if self._policy.shared:
            return
        try:
            await self._dispose(self._policy.limit)
        except KeyStoreError as error:
            self._log.warning("Unused keys were not destroyed yet", error=str(error))

    async def _dispose_regularly(self) -> None:
        while not self._policy.shared:
            async with self._changing:
                await self._dispose_if_possible()
            await asyncio.sleep(DISPOSAL_INTERVAL)


async def _reconciled(tokens: Tokens, path: Path, stored: Mapping | None, policy: Policy, log: Logger) -> Mapping:
    """The mapping to go on with, written down, after a look at the primary token. Raises what `reconcile` raises."""
    found = await tokens.primary_keys()
    result = mapping.reconcile(stored, found, policy.namespace, int(time.time()), shared=policy.shared)
    if result.mapping != stored:
        await asyncio.to_thread(state.write, path, result.mapping)
    for key_id in result.adopted:
        log.warning("keys_path was gone; adopted the token's key by its label", key_id=key_id, path=str(path))
    for orphan in result.orphans:
        log.info("Retired a key that nothing refers to", key_id=orphan.key_id, cka_id=orphan.cka_id)
    return result.mapping


async def _load(
    configuration: settings.Configuration, context: PluginContext, default_namespace: str, limit: int
) -> KeyManager:
    path = settings.keys_path(configuration, context.data_dir)
    policy = Policy(
        namespace=settings.namespace(configuration, default_namespace),
        limit=limit,
        grace=state.grace(configuration.grace).total_seconds(),
        shared=configuration.shared_keys,
    )
    tokens_of_keys = (configuration, *(settings.clone(configuration, name) for name in configuration.clone))
    specs = [settings.token_spec(each) for each in tokens_of_keys]
    pins = await pins_of(tokens_of_keys, path)
    primary, *clones = (Device(spec, pin, context.log) for spec, pin in zip(specs, pins, strict=True))
    tokens = Tokens(primary, clones, f"{policy.namespace}/", context.log)
    return await Pkcs11KeyManager.open(tokens, path, policy, context.log)


async def load_server(configuration: settings.Configuration, context: PluginContext) -> KeyManager:
    """Raises the errors of keystores.errors and ConfigurationError, each one line that names what to correct."""
    return await _load(configuration, context, "server", SERVER_KEYS)


async def load_agent(configuration: settings.Configuration, context: PluginContext) -> KeyManager:
    """As `load_server`, for an agent's smaller number of keys."""
    return await _load(configuration, context, "agent", AGENT_KEYS)
