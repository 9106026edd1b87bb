"""The tokens that hold one key set: the primary, and clones that sign while it is away.

Keys are made, labelled and destroyed in the primary alone. Some devices copy them to their clones by themselves, with
others an operator does; so each key of a clone is looked at before it is used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import msgspec

from keystores.errors import KeyStoreError, PermanentlyUnusable, TemporarilyUnavailable
from keystores.pkcs11 import encoding
from keystores.pkcs11.batches import Signer
from keystores.pkcs11.device import Device
from keystores.pkcs11.mapping import MappedKey, TokenKey
from keystores.pkcs11.protocol import Destroy, FoundKey, ListKeys, Mechanism, Relabel, Seal, Sealed
from operations.errors import SpireError
from operations.logs import Logger

FAILOVER_PATIENCE = 20.0
"""Seconds after which no further token is tried for a signature."""
SEALING_PATIENCE = 15.0
"""Seconds; the first use makes a key."""
LOOK_AGAIN = 30.0
"""Seconds after which a clone that lacked a key is looked at again."""

Check = Callable[[Sequence[bytes]], Awaitable[list[bytes]]]
"""Turns raw signatures into checked ones. Raises PermanentlyUnusable for a wrong one."""


class Clone:
    """A further token, and which of the keys it is known to have."""

    def __init__(self, device: Device, prefix: str, log: Logger) -> None:
        self.device = device
        self.signer = Signer(device)
        self._prefix = prefix
        self._log = log.bind(token=device.name)
        self._public_keys: dict[str, bytes | None] = {}
        self._looked_at: float | None = None
        self._told: set[str] = set()
        self._looking: asyncio.Task[None] | None = None

    async def has(self, key_id: str, key: MappedKey) -> bool:
        """Whether the clone may sign as that key. Says once why not."""
        if key.cka_id not in self._public_keys:
            await self.look()
        reason = None
        if key.cka_id not in self._public_keys:
            reason = "The clone lacks a key: copy it there from the primary, as the device's manual says"
        elif self._public_keys[key.cka_id] not in (None, key.public_key):
            reason = "The clone has another key under the same CKA_ID; it is not used for it"
        if reason is None:
            self._told.discard(key.cka_id)
            return True
        if key.cka_id not in self._told:
            self._told.add(key.cka_id)
            self._log.warning(reason, key_id=key_id, cka_id=key.cka_id)
        return False

    async def look(self, *, now: bool = False) -> None:
        """List the clone's keys, not too often unless it is to be `now`. Raises KeyStoreError when it is away."""
        loop = asyncio.get_running_loop()
        if not now and self._looked_at is not None and loop.time() < self._looked_at + LOOK_AGAIN:
            return
        found = await self.device.call(ListKeys(self._prefix), list[FoundKey])
        self._looked_at = loop.time()
        self._public_keys = {key.cka_id.hex(): key.public_key for key in map(token_key, found)}

    async def compare(self, keys: dict[str, MappedKey]) -> None:
        """Look at the clone now, and tell of each key that it may not be used for."""
        try:
            await self.look(now=True)
            for key_id, key in keys.items():
                await self.has(key_id, key)
        except SpireError as error:
            self._log.warning("A clone cannot be used at present", error=error)

    def distrust(self, key_id: str, key: MappedKey) -> None:
        """It signed wrongly: not this key's signature."""
        self._public_keys[key.cka_id] = b""
        self._looked_at = asyncio.get_running_loop().time()
        self._log.error("The clone's signature does not verify; it is not used for this key", key_id=key_id)


class Tokens:
    def __init__(self, primary: Device, clones: Sequence[Device], prefix: str, log: Logger) -> None:
        self.primary = primary
        self._signer = Signer(primary)
        self._clones = [Clone(device, prefix, log) for device in clones]
        self._prefix = prefix
        self._log = log
        self._on_clone: str | None = None
        self._comparing: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        for device in (self.primary, *(clone.device for clone in self._clones)):
            device.start()

    @property
    def has_clones(self) -> bool:
        return bool(self._clones)

    async def open_clones(self, keys: Callable[[], dict[str, MappedKey]]) -> None:
        """Log in to the clones. One that is away is tried again until it is there; a refusal is the operator's."""
        for clone in self._clones:
            try:
                await clone.device.open()
            except TemporarilyUnavailable as error:
                self._log.warning("A clone is away", token=clone.device.name, error=error)
                clone.device.suspect(error)
            self._compare(clone, keys)
            clone.device.when_back.append(lambda clone=clone: self._compare(clone, keys))  # type: ignore[misc]

    def compare(self, keys: Callable[[], dict[str, MappedKey]]) -> None:
        """See, without anybody waiting for it, that the clones have the keys."""
        for clone in self._clones:
            if not clone.device.away:
                self._compare(clone, keys)

    def _compare(self, clone: Clone, keys: Callable[[], dict[str, MappedKey]]) -> None:
        task = asyncio.create_task(clone.compare(keys()))
        self._comparing.add(task)
        task.add_done_callback(self._comparing.discard)

    async def sign(
        self, key_id: str, key: MappedKey, mechanism: Mechanism, payloads: list[bytes], check: Check
    ) -> list[bytes]:
        """By the primary, or by the first clone that has the key. Raises the primary's error when none signs."""
        began = asyncio.get_running_loop().time()
        cka_id = bytes.fromhex(key.cka_id)
        try:
            signatures = await check(await self._signer.sign(cka_id, mechanism, payloads))
        except (TemporarilyUnavailable, PermanentlyUnusable) as error:
            for clone in self._clones:
                if clone.device.away or asyncio.get_running_loop().time() > began + FAILOVER_PATIENCE:
                    continue
                with suppress(KeyStoreError):
                    if not await clone.has(key_id, key):
                        continue
                    raw = await clone.signer.sign(cka_id, mechanism, payloads)
                    try:
                        signatures = await check(raw)
                    except PermanentlyUnusable:
                        clone.distrust(key_id, key)
                        continue
                    self._signs(clone.device.name, error)
                    return signatures
            raise
        self._signs(None, None)
        return signatures

    def _signs(self, clone: str | None, error: SpireError | None) -> None:
        """Tell once where signatures come from."""
        if clone != self._on_clone:
            self._on_clone = clone
            if clone is None:
                self._log.info("The primary token signs again")
            else:
                self._log.warning("A clone signs in place of the primary token", token=clone, error=error)

    async def primary_keys(self) -> list[TokenKey]:
        """The keys in the primary token that carry the namespace's labels."""
        found = await self.primary.call(ListKeys(self._prefix), list[FoundKey])
        return [token_key(key) for key in found]

    async def seal(self, wanted: Seal) -> Sealed:
        """By the primary, which makes the key if there is none; while it is away by a clone that has the same one."""
        try:
            return await self.primary.call(wanted, Sealed, patience=SEALING_PATIENCE, rw=True)
        except TemporarilyUnavailable:
            for clone in self._clones:
                with suppress(KeyStoreError):
                    sealed = await clone.device.call(msgspec.structs.replace(wanted, cka_id=None), Sealed)
                    if sealed.cka_id == wanted.witness:
                        return sealed
            raise

    async def relabel(self, cka_id: bytes, label: str) -> None:
        await self.primary.call(Relabel(cka_id, label), type(None), rw=True)

    async def destroy(self, cka_id: bytes) -> None:
        """Destroy a key in the primary token and, where they can be reached, in its clones."""
        await self.primary.call(Destroy(cka_id), type(None), rw=True)
        for clone in self._clones:
            with suppress(KeyStoreError):
                await clone.device.call(Destroy(cka_id), type(None), rw=True)

    def check_open(self) -> None:
        self.primary.check_open()

    async def close(self) -> None:
        for task in list(self._comparing):
            task.cancel()
        await asyncio.gather(*self._comparing, return_exceptions=True)
        await asyncio.gather(self.primary.close(), *(clone.device.close() for clone in self._clones))


def token_key(found: FoundKey) -> TokenKey:
    public = None if found.public is None else encoding.public_key(found.public)
    return TokenKey(found.cka_id, found.label, public)
