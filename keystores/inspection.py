"""The Keys service of server and agent (spire.keys.v1), over any key manager: what it lacks is said, not hidden."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from generated.spire.keys.v1 import keys_pb2 as api
from keystores import key_messages, proving
from keystores.errors import InvalidArgument, NotFound, Refused, TemporarilyUnavailable, Unsupported
from operations import times
from operations.errors import SpireError
from plugins.keyinventory import Check, Disposing, Inventory, KeyRecord, Proof, Proving, Withdrawing
from plugins.keymanager import KeyManager

DEADLINE = 25.0
"""Seconds of a whole call; each look at a device has a shorter one of its own."""

LONGEST_NAME = 512

PUBLIC_KEY = "public key"
NOT_TOLD = "tells ids, types and public keys only: labels, attributes, times and unused keys are not known"


@dataclass(frozen=True, slots=True)
class Use:
    """What the program uses a key for. `public_key` (DER) is the one that others know it by.

    `giving_way` says that the key's id may name its successor already.
    """

    purpose: str
    status: str
    name: str
    key_id: str
    public_key: bytes
    giving_way: bool = False


AtRest = Callable[[], AbstractAsyncContextManager[None]]


class Inspection:
    def __init__(
        self, manager: KeyManager, name: str, uses: Callable[[], Sequence[Use]], *, at_rest: AtRest | None = None
    ) -> None:
        """`name` is the plugin's. `uses` tells what is used now.

        While `at_rest` is held no key is made or taken into use: without it a key that has an id is never withdrawn.
        """
        self._manager = manager
        self._name = name
        self._uses = uses
        self._at_rest = at_rest
        self._turn = asyncio.Lock()

    async def list(self, key_id: str = "") -> api.ListKeysResponse:
        """Raises NotFound for an id that no key has or had, and the errors of keystores.errors."""
        async with self._calling():
            records = await self._records(key_id)
        not_known = [] if isinstance(self._manager, Inventory) else [f"key manager {self._name!r} {NOT_TOLD}"]
        return api.ListKeysResponse(
            key_manager=self._name, keys=[self._message(record) for record in records], not_known=not_known
        )

    async def verify(self, key_id: str = "") -> api.VerifyKeysResponse:
        """Every key that has an id, or the one. What keeps a key from its proof is in the proof. Raises NotFound."""
        async with self._calling():
            records = await self._records(key_id)
            uses = self._uses()
            current = [each for each in records if _has_name(each) and each.public_key is not None]
            proofs = [await self._prove(record, uses) for record in current]
            proofs += [_lacking(use) for use in uses if key_id in ("", use.key_id) and _is_lacking(use, records)]
        if not proofs:
            raise NotFound(f"no key has the id {key_id!r} any more" if key_id else "there is no key to be verified")
        messages = [key_messages.proof(each, self._used_by(each.record)) for each in proofs]
        return api.VerifyKeysResponse(key_manager=self._name, proofs=messages)

    async def dispose(self, key_id: str = "", handle: str = "") -> api.DisposeKeyResponse:
        """Destroy the key at once. Raises Refused for one in use, NotFound, Unsupported, InvalidArgument."""
        if bool(key_id) == bool(handle):
            raise InvalidArgument("name one key, by its id or by its handle")
        if len(handle) > LONGEST_NAME:
            raise InvalidArgument(f"a key's handle has at most {LONGEST_NAME} characters")
        if not isinstance(self._manager, Disposing):
            raise Unsupported(f"key manager {self._name!r} disposes of its keys by itself, or not at all")
        async with self._calling(), self._resting():
            record = self._one(await self._records(key_id), key_id, handle)
            self._check_unused(record)
            if record.retired_at is not None:
                await self._manager.dispose(record.handle)
            elif not record.named:
                raise Refused(f"key {record.handle} has no name here, and it is not known who else uses it")
            elif self._at_rest is not None and isinstance(self._manager, Withdrawing):
                await self._manager.withdraw(record.handle)
            else:
                raise Refused(f"key {record.id!r} has its name still: it is disposed of some time after its successor")
        return api.DisposeKeyResponse(key=self._message(record))

    @asynccontextmanager
    async def _calling(self) -> AsyncGenerator[None]:
        """One call at a time, none for long: operators must not keep the device from signing."""
        try:
            async with asyncio.timeout(DEADLINE), self._turn:
                yield
        except TimeoutError as error:
            raise TemporarilyUnavailable(
                f"key manager {self._name!r} gave no answer within {DEADLINE:g} s, or keys are being made"
            ) from error

    @asynccontextmanager
    async def _resting(self) -> AsyncGenerator[None]:
        if self._at_rest is None:
            yield
            return
        async with self._at_rest():
            yield

    async def _records(self, key_id: str) -> Sequence[KeyRecord]:
        if len(key_id) > LONGEST_NAME:
            raise InvalidArgument(f"a key's id has at most {LONGEST_NAME} characters")
        manager = self._manager
        if isinstance(manager, Inventory):
            found = list(await manager.inventory())
        else:
            found = [KeyRecord(key.id, key.id, key.key_type, key.public_key, "", "") for key in await manager.list()]
        found = [each for each in found if not key_id or each.id == key_id]
        if key_id and not found:
            raise NotFound(f"no key has or had the id {key_id!r}: `keys list` has those there are")
        return sorted(found, key=lambda each: (each.id, each.retired_at or 0, each.handle))

    async def _prove(self, record: KeyRecord, uses: Sequence[Use]) -> Proof:
        try:
            proof = await self._proof(record)
        except SpireError as error:
            proof = Proof(record, (Check(proving.POSSESSION, passed=False, found=f"the key cannot be asked: {error}"),))
        known = [check for use in uses if (check := _known_by(use, proof.record)) is not None]
        return Proof(proof.record, (*known, *proof.checks), proof.attestation)

    async def _proof(self, record: KeyRecord) -> Proof:
        manager = self._manager
        if isinstance(manager, Proving):
            return await manager.prove(record.id)
        key = await manager.get(record.id)
        return Proof(record, (await proving.possession(key, key.public_key), proving.unknown(self._name)))

    def _used_by(self, record: KeyRecord) -> Sequence[Use]:
        if record.key_type is None and record.public_key is None and _has_name(record):
            return [Use("sealed store", "active", "", record.id, b"")]
        return [use for use in self._uses() if use.public_key == record.public_key]

    def _message(self, record: KeyRecord) -> api.Key:
        return key_messages.key(record, self._used_by(record))

    def _one(self, records: Sequence[KeyRecord], key_id: str, handle: str) -> KeyRecord:
        """Never a choice among several."""
        if handle:
            named = [each for each in records if each.handle.lower() == handle.lower()]
            if not named:
                raise NotFound(f"no key has the handle {handle!r}: `keys list` has those there are")
        else:
            named = list(records)
        if len(named) == 1:
            return named[0]
        for record in named:
            self._check_unused(record, f"; retired keys that had the id are named by their handles: {_retired(named)}")
        raise InvalidArgument(f"{len(named)} keys have or had the id {key_id!r}: name one by its handle: {_all(named)}")

    def _check_unused(self, record: KeyRecord, hint: str = "") -> None:
        for use in self._used_by(record):
            by = f"{use.status} {use.purpose} {use.name}".rstrip()
            raise Refused(f"key {record.id!r} is in use, by the {by}{hint}")


def _has_name(record: KeyRecord) -> bool:
    return record.named and record.retired_at is None


def _retired(records: Sequence[KeyRecord]) -> str:
    return _all([each for each in records if each.retired_at is not None])


def _all(records: Sequence[KeyRecord]) -> str:
    return ", ".join(
        each.handle if each.retired_at is None else f"{each.handle} (retired {times.rfc3339(each.retired_at)})"
        for each in records
    )


def _known_by(use: Use, record: KeyRecord) -> Check | None:
    """Whether the key is the one that others know; None where the use is of another key."""
    what = f"the {use.status} {use.purpose} {use.name}"
    if use.public_key == record.public_key:
        return Check(PUBLIC_KEY, passed=True, found=f"it is that of {what}")
    if use.key_id != record.id or use.giving_way:
        return None
    return Check(PUBLIC_KEY, passed=False, found=f"it is not that of {what}, which goes by this id")


def _is_lacking(use: Use, records: Sequence[KeyRecord]) -> bool:
    if use.giving_way:
        return False
    return not any(use.public_key == each.public_key or use.key_id == each.id for each in records)


def _lacking(use: Use) -> Proof:
    """Of a key that the program uses, and the key manager lacks."""
    record = KeyRecord("", use.key_id, None, use.public_key, "", "")
    found = f"the key manager has no key for the {use.status} {use.purpose} {use.name}"
    return Proof(record, (Check(PUBLIC_KEY, passed=False, found=found),))
