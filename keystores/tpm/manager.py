"""The KeyManager over a TPM: ids, the durable mapping, checked signatures, and the end of unused blobs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from keystores import public_keys, software, state
from keystores.errors import InvalidArgument, KeyStoreError, NotFound, PermanentlyUnusable, Refused
from keystores.tpm import blobs, messages, proofs, signing
from keystores.tpm import configuration as settings
from keystores.tpm.authorizations import Authorization
from keystores.tpm.blobs import Entry, Folder, Index, Stored
from keystores.tpm.worker import PATIENCE, Patience, Worker, WrongAuthorization
from plugins.keyinventory import KeyRecord, Proof
from plugins.keymanager import Key, KeyManager, KeyType, Scheme

if TYPE_CHECKING:
    from operations.logs import Logger
    from plugins.catalog import PluginContext

KEY_ID_LIMIT = 200
DISPOSAL_INTERVAL = 60.0
INLINE_CHECKS = 4
TURN = 16
"""Signatures of a batch after which others have their turn: of a TPM in hardware, two seconds or more."""
SEALED_SIZE = 32
SERVER_KEYS, AGENT_KEYS = 8, 4


@dataclass(frozen=True, slots=True)
class Policy:
    """`limit` on keys, retired ones included; `grace` in seconds; `pcrs` that new keys are bound to."""

    limit: int
    grace: float
    pcrs: str | None


class TpmKey:
    """A `Key` whose private half only the TPM can unwrap."""

    def __init__(self, worker: Worker, key_id: str, entry: Entry) -> None:
        self.id = key_id
        self.key_type = entry.key_type
        self.public_key = entry.area.der
        self._blob = entry.stored.blob
        self._verifier = public_keys.from_der(self.public_key)
        self._worker = worker
        self.last_signature_at: int | None = None

    @property
    def blob(self) -> messages.Blob:
        """As the TPM loads it, for those who have it prove something of the key."""
        return self._blob

    async def sign(self, digest: bytes, scheme: Scheme) -> bytes:
        [signature] = await self.sign_batch([digest], scheme)
        return signature

    async def sign_batch(self, digests: Sequence[bytes], scheme: Scheme) -> list[bytes]:
        public_keys.check_digests(digests, scheme)
        if not digests:
            return []
        made: list[bytes] = []
        for start in range(0, len(digests), TURN):
            request = signing.request(self._blob, self._verifier, digests[start : start + TURN], scheme)
            made += (await self._worker.call(request, messages.Signed)).signatures
        if len(digests) <= INLINE_CHECKS:
            signatures = signing.check(self._verifier, digests, made, scheme)
        else:
            # Meanwhile the TPM signs for others.
            signatures = await asyncio.to_thread(signing.check, self._verifier, digests, made, scheme)
        self.last_signature_at = int(time.time())
        return signatures


class TpmKeyManager:
    def __init__(
        self,
        worker: Worker,
        folder: Folder,
        index: Index,
        entries: Mapping[str, Entry],
        policy: Policy,
        place: str,
        log: Logger,
        held: AsyncExitStack,
    ) -> None:
        self._worker = worker
        self._folder = folder
        self._index = index
        self._policy = policy
        self._place = place
        self._log = log
        self._held = held
        self._changing = asyncio.Lock()
        self._keys = {key_id: TpmKey(worker, key_id, entry) for key_id, entry in entries.items()}
        self._disposal = asyncio.create_task(self._dispose_regularly())

    @classmethod
    async def open(cls, worker: Worker, folder: Folder, policy: Policy, log: Logger) -> TpmKeyManager:
        """Find the parent, and see that the TPM loads every key. Takes the worker over; on an error it is closed."""
        async with AsyncExitStack() as held:
            held.push_async_callback(worker.close)
            await asyncio.to_thread(held.enter_context, folder.locked())
            stored = await asyncio.to_thread(folder.read_index)
            if stored is not None:
                worker.expect(stored.source, bytes.fromhex(stored.parent))
            probed = await worker.call(messages.Probe(), messages.Probed, creation=True)
            worker.expect(probed.source, probed.name)
            index, entries, orphans = await asyncio.to_thread(_reconciled, folder, stored, probed)
            for key_id, entry in entries.items():
                await _check_loads(worker, key_id, entry)
            for orphan in orphans:
                log.info("Retired a key that nothing refers to", key_id=orphan.id, name=orphan.name)
            if stored is None and index.keys:
                log.warning("The mapping was gone; adopted the blobs by their ids", path=str(folder.path))
            return cls(worker, folder, index, entries, policy, probed.tpm, log, held.pop_all())

    @property
    def worker(self) -> Worker:
        """The TPM's one owner in this process, for whoever else needs the same TPM; it stays the key manager's."""
        return self._worker

    async def generate(self, key_id: str, key_type: KeyType) -> Key:
        if not key_id or len(key_id) > KEY_ID_LIMIT:
            raise InvalidArgument(f"{key_id!r} cannot be a key's id")
        # A key that exists must reach the mapping, whether or not the caller still waits for it.
        return await asyncio.shield(asyncio.ensure_future(self._generate(key_id, key_type)))

    async def _generate(self, key_id: str, key_type: KeyType) -> Key:
        async with self._changing:
            await self._make_room(key_id)
            request = messages.Create(key_type=key_type.value, pcrs=self._policy.pcrs)
            made = await self._worker.call(request, messages.Wrapped, creation=True)
            entry = _checked(
                Stored(
                    id=key_id,
                    public=made.public,
                    private=made.private,
                    created_at=int(time.time()),
                    pcrs=self._policy.pcrs,
                ),
                key_type,
            )
            await self._name(key_id, entry)
            key = self._keys[key_id] = TpmKey(self._worker, key_id, entry)
            await self._dispose(self._policy.limit)
            return key

    async def get(self, key_id: str) -> Key:
        self._worker.check_open()
        try:
            return self._keys[key_id]
        except KeyError:
            raise NotFound(f"{self._folder.path} has no key {key_id!r}") from None

    async def list(self) -> Sequence[Key]:
        self._worker.check_open()
        return tuple(self._keys.values())

    async def sealing_secret(self, label: str) -> bytes:
        self._worker.check_open()
        async with self._changing:
            stored = await asyncio.to_thread(self._folder.read_sealed)
            if stored is None:
                request = messages.Seal(size=SEALED_SIZE, pcrs=self._policy.pcrs)
                made = await self._worker.call(request, messages.Wrapped, creation=True)
                stored = Stored(
                    id=blobs.SEALING_ID,
                    public=made.public,
                    private=made.private,
                    created_at=int(time.time()),
                    pcrs=self._policy.pcrs,
                )
                await asyncio.to_thread(self._folder.write_sealed, stored)
            opened = await self._worker.call(messages.Unseal(blob=stored.blob), messages.Unsealed)
        if len(opened.data) != SEALED_SIZE:
            raise PermanentlyUnusable(f"keys_path: {self._folder.path / blobs.SEALED} seals something else")
        return software.derived(opened.data, label)

    async def inventory(self) -> Sequence[KeyRecord]:
        self._worker.check_open()
        async with self._changing:
            return await asyncio.to_thread(proofs.records, self._ledger)

    async def prove(self, key_id: str) -> Proof:
        await self.get(key_id)
        async with self._changing:
            entry = await asyncio.to_thread(self._folder.read_key, self._index.keys[key_id])
            key, record = self._keys[key_id], proofs.used(self._ledger, key_id, entry)
        return await proofs.prove(self._worker, key, entry, record)

    async def dispose(self, handle: str) -> None:
        await asyncio.shield(asyncio.ensure_future(self._end(handle, withdrawing=False)))

    async def withdraw(self, handle: str) -> None:
        await asyncio.shield(asyncio.ensure_future(self._end(handle, withdrawing=True)))

    async def _end(self, handle: str, *, withdrawing: bool) -> None:
        """Remove a key. The mapping has it as retired until it is gone: a crash leaves one that is due."""
        self._worker.check_open()
        name = handle.lower().removeprefix(proofs.NAME_PREFIX)
        async with self._changing:
            key_id = self._index.id_of(name)
            if key_id is None and (withdrawing or all(key.name != name for key in self._index.retired)):
                raise NotFound(f"{self._folder.path} has no {'' if withdrawing else 'retired '}key {handle!r}")
            if key_id is not None:
                if not withdrawing:
                    raise Refused(f"key {key_id!r} has its name still, and is kept")
                await self._remember(self._index.without_key(key_id, int(time.time())))
                del self._keys[key_id]
            await self._remove(name)
            self._log.info("Removed a key by an operator's wish", key_id=key_id, name=name)

    @property
    def _ledger(self) -> proofs.Ledger:
        signed_at = {key_id: key.last_signature_at for key_id, key in self._keys.items()}
        return proofs.Ledger(self._folder, self._index, self._place, self._policy.grace, signed_at)

    async def close(self) -> None:
        self._disposal.cancel()
        async with self._changing:
            await self._held.aclose()

    async def _name(self, key_id: str, entry: Entry) -> None:
        """Write the new key down, then its name. Where that fails its blob goes again, lest each attempt leave one."""
        await asyncio.to_thread(self._folder.write_key, entry)
        try:
            await self._remember(self._index.with_key(key_id, entry.name, int(time.time())))
        except KeyStoreError:
            stored = await asyncio.to_thread(self._folder.read_index)
            if stored is None or entry.name not in stored.keys.values():
                await asyncio.to_thread(self._folder.remove_key, entry.name)
            raise

    async def _remember(self, changed: Index) -> None:
        await asyncio.to_thread(self._folder.write_index, changed)
        self._index = changed

    async def _make_room(self, key_id: str) -> None:
        """Raises Refused when keys in use alone are as many as there may be."""
        limit = self._policy.limit
        if len(self._index.keys) >= limit and key_id not in self._index.keys:
            raise Refused(f"{limit} keys are in use, and no more are kept in one keys_path")
        await self._dispose(limit - 1)

    async def _dispose(self, limit: int) -> None:
        """Remove the blobs that are due. Needs `_changing`."""
        for key in self._index.due(int(time.time()), self._policy.grace, limit):
            await self._remove(key.name)
            self._log.info("Removed an unused key", key_id=key.id, name=key.name)

    async def _remove(self, name: str) -> None:
        await asyncio.to_thread(self._folder.remove_key, name)
        await self._remember(self._index.without_retired(name))

    async def _dispose_regularly(self) -> None:
        while True:
            try:
                async with self._changing:
                    await self._dispose(self._policy.limit)
            except KeyStoreError as error:
                self._log.warning("Unused keys were not removed yet", error=str(error))
            await asyncio.sleep(DISPOSAL_INTERVAL)


def _reconciled(
    folder: Folder, stored: Index | None, probed: messages.Probed
) -> tuple[Index, Mapping[str, Entry], Sequence[blobs.RetiredKey]]:
    """The mapping to go on with, written where it changed."""
    folder.clear_unfinished()
    found = blobs.adopted(folder, probed.source, probed.name.hex()) if stored is None else stored
    found = msgspec.structs.replace(found, source=probed.source)
    index, entries, orphans = blobs.with_orphans(folder, found, int(time.time()))
    if index != stored:
        folder.write_index(index)
    return index, entries, orphans


async def _check_loads(worker: Worker, key_id: str, entry: Entry) -> None:
    """Raises PermanentlyUnusable where the TPM does not load the blob."""
    try:
        described = await worker.call(messages.Describe(key=entry.stored.blob), messages.Described)
    except PermanentlyUnusable as error:
        raise PermanentlyUnusable(
            f"keys_path: key {key_id!r} (key-{entry.name}.json): {error}; restore it from a backup, or move the folder "
            "away to start with new keys"
        ) from error.__cause__
    if described.name != entry.area.name:
        raise PermanentlyUnusable(f"the TPM loaded another key than {key_id!r}; it was not used")


def _checked(stored: Stored, key_type: KeyType) -> Entry:
    """What the TPM made, read back. Raises Refused unless it is a signing key that never leaves the TPM."""
    made = blobs.entry(stored)
    if made.key_type is not key_type:
        raise Refused(f"the TPM made a key of type {made.key_type.value}, not {key_type.value}; it is not used")
    if made.area.faults:
        raise Refused(f"the TPM made a key that is not as asked ({', '.join(made.area.faults)}); it is not used")
    return made


async def load(
    configuration: settings.Configuration,
    context: PluginContext,
    limit: int,
    patience: Patience = PATIENCE,
) -> TpmKeyManager:
    """Raises the errors of keystores.errors and ConfigurationError, each one line that names what to correct."""
    given = configuration
    path = settings.keys_path(given, context.data_dir)
    owner = Authorization.configured("owner_auth", given.owner_auth_file, given.owner_auth_credential)
    parent = Authorization.configured(
        "parent_auth", given.parent_auth_file, given.parent_auth_credential, path.with_name(f"{path.name}.auth-refused")
    )
    place = messages.Place(
        tcti=settings.tcti(given.tcti),
        parent=settings.parent(given.parent),
        owner_auth=await asyncio.to_thread(owner.read),
        parent_auth=await asyncio.to_thread(parent.read),
    )
    policy = Policy(limit=limit, grace=state.grace(given.grace).total_seconds(), pcrs=settings.pcrs(given.pcrs))
    try:
        return await TpmKeyManager.open(Worker(place, patience), Folder(path), policy, context.log)
    except WrongAuthorization:
        await asyncio.to_thread(parent.refused)
        raise


async def load_server(configuration: settings.Configuration, context: PluginContext) -> KeyManager:
    """The key manager of a server, which has 8 keys at most; see `load`."""
    return await load(configuration, context, SERVER_KEYS)


async def load_agent(configuration: settings.Configuration, context: PluginContext) -> KeyManager:
    """As `load_server`, for an agent's smaller number of keys."""
    return await load(configuration, context, AGENT_KEYS)
