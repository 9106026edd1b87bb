"""What operators are told of keys, over key managers that can much or little, and what is disposed of for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from keystores.errors import InvalidArgument, NotFound, Refused, TemporarilyUnavailable, Unsupported
from keystores.inspection import Inspection, Use
from keystores.memory import MemoryKeyManager
from plugins.keyinventory import KeyRecord
from plugins.keymanager import Key, KeyManager, KeyType
from tests.contract.keymanager_backends import BACKENDS

A, B = "x509-CA-A", "x509-CA-B"


class Plain:
    """A key manager with the four verbs alone."""

    def __init__(self, inner: KeyManager) -> None:
        self.generate, self.get, self.list, self.close = inner.generate, inner.get, inner.list, inner.close


class Keeping(MemoryKeyManager):
    """Keeps the records of retired keys, and notes whom it was told to dispose of."""

    def __init__(self, *retired: str) -> None:
        super().__init__()
        self.retired = [KeyRecord(handle, A, KeyType.EC_P256, b"", "", "", retired_at=7) for handle in retired]
        self.disposed: list[str] = []

    async def inventory(self) -> Sequence[KeyRecord]:
        return [*await super().inventory(), *self.retired]

    async def dispose(self, handle: str) -> None:
        self.disposed.append(handle)


def use(key: Key, status: str = "active", *, giving_way: bool = False) -> Use:
    return Use("X.509 authority", status, "ab01", key.id, key.public_key, giving_way=giving_way)


def inspection(manager: KeyManager, *uses: Use, at_rest: bool = True) -> Inspection:
    @asynccontextmanager
    async def resting() -> AsyncGenerator[None]:
        yield

    return Inspection(manager, "kept", lambda: uses, at_rest=resting if at_rest else None)


async def test_a_manager_of_four_verbs_is_listed_and_what_is_missing_said() -> None:
    manager = Plain(MemoryKeyManager())
    key = await manager.generate(A, KeyType.EC_P256)
    found = await inspection(manager, use(key)).list()
    assert [(each.id, each.type, each.public_key) for each in found.keys] == [(A, "ec-p256", key.public_key)]
    [sentence] = found.not_known
    assert sentence.startswith("key manager 'kept' tells ids, types and public keys only: labels, attributes, times ")
    assert not found.keys[0].HasField("created_at")
    [proof] = (await inspection(manager, use(key)).verify(A)).proofs
    assert [(check.name, check.passed) for check in proof.checks] == [
        ("public key", True), ("possession", True), ("non-exportability", False),
    ]  # fmt: skip
    assert "does not say" in proof.checks[2].found
    with pytest.raises(Unsupported, match="'kept' disposes of its keys by itself"):
        await inspection(manager).dispose(A)


async def test_a_key_that_is_not_the_one_others_know_fails_its_proof() -> None:
    manager = MemoryKeyManager()
    known = use(await manager.generate(A, KeyType.EC_P256))
    await manager.generate(A, KeyType.EC_P256)
    [proof] = (await inspection(manager, known).verify()).proofs
    assert (proof.stands, proof.checks[0].name, proof.checks[0].passed) == (False, "public key", False)
    assert "it is not that of the active X.509 authority ab01, which goes by this id" in proof.checks[0].found
    old = Use(known.purpose, "old", known.name, A, known.public_key, giving_way=True)
    [proof] = (await inspection(manager, old).verify()).proofs
    assert proof.checks[0].name == "possession", "the next authority's key takes the old one's id"


async def test_a_key_that_the_manager_lacks_fails_its_proof() -> None:
    lost = use(await MemoryKeyManager().generate(A, KeyType.EC_P256))
    [proof] = (await inspection(MemoryKeyManager(), lost).verify()).proofs
    assert (proof.key.id, proof.stands) == (A, False)
    assert proof.checks[0].found == "the key manager has no key for the active X.509 authority ab01"
    with pytest.raises(NotFound, match="there is no key to be verified"):
        await inspection(MemoryKeyManager()).verify()


async def test_a_key_that_cannot_be_asked_does_not_keep_others_from_their_proof() -> None:
    class Away(MemoryKeyManager):
        async def prove(self, key_id: str) -> object:  # type: ignore[override]
            if key_id == A:
                raise TemporarilyUnavailable("the token is away")
            return await super().prove(key_id)

    manager = Away()
    for key_id in (A, B):
        await manager.generate(key_id, KeyType.EC_P256)
    first, second = (await inspection(manager).verify()).proofs
    assert [check.found for check in first.checks] == ["the key cannot be asked: the token is away"]
    assert second.checks[0].passed


async def test_only_keys_that_nobody_uses_are_disposed_of() -> None:
    manager = Keeping("0A")
    used = use(await manager.generate(A, KeyType.EC_P256))
    await manager.generate(B, KeyType.EC_P256)
    inspected = inspection(manager, used)
    with pytest.raises(Refused, match=r"'x509-CA-A' is in use, by the active X.509 authority ab01; .* 0A \(retired 19"):
        await inspected.dispose(key_id=A)
    with pytest.raises(Refused, match="is in use"):
        await inspected.dispose(handle=A)
    assert (await inspected.dispose(handle="0a")).key.handle == "0A"
    assert manager.disposed == ["0A"]
    with pytest.raises(Refused, match="has its name still"):
        await inspection(manager, used, at_rest=False).dispose(key_id=B)
    assert (await inspected.dispose(key_id=B)).key.id == B
    assert [key.id for key in await manager.list()] == [A]
    assert manager.disposed == ["0A"], "it had its name still: it was withdrawn"


async def test_a_key_to_be_disposed_of_is_named_beyond_doubt() -> None:
    manager = Keeping("0A", "0B")
    inspected = inspection(manager)
    with pytest.raises(InvalidArgument, match=r"2 keys have or had the id 'x509-CA-A': .* 0A .*0B"):
        await inspected.dispose(key_id=A)
    for key_id, handle in (("", ""), (A, "0A")):
        with pytest.raises(InvalidArgument, match="name one key"):
            await inspected.dispose(key_id, handle)
    for key_id, handle in (("nobody", ""), ("", "0F")):
        with pytest.raises(NotFound, match="keys list"):
            await inspected.dispose(key_id, handle)
    assert manager.disposed == []


async def test_no_key_is_withdrawn_while_keys_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keystores.inspection.DEADLINE", 0.1)
    turn = asyncio.Lock()

    @asynccontextmanager
    async def resting() -> AsyncGenerator[None]:
        async with turn:
            yield

    manager = MemoryKeyManager()
    uses: list[Use] = []
    inspected = Inspection(manager, "memory", uses.copy, at_rest=resting)
    async with turn:
        key = await manager.generate(A, KeyType.EC_P256)
        with pytest.raises(TemporarilyUnavailable, match=r"no answer within 0.1 s, or keys are being made"):
            await inspected.dispose(key_id=A)
        uses.append(use(key, "prepared"))
    with pytest.raises(Refused, match="prepared"):
        await inspected.dispose(key_id=A)


async def test_a_manager_that_hangs_costs_a_call_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keystores.inspection.DEADLINE", 0.1)

    class Hanging(MemoryKeyManager):
        async def inventory(self) -> Sequence[KeyRecord]:
            await asyncio.Event().wait()
            return ()

    inspected = inspection(Hanging())
    for call in (inspected.list(), inspected.verify(), inspected.dispose(key_id=A)):
        with pytest.raises(TemporarilyUnavailable, match=r"'kept' gave no answer within 0.1 s"):
            await call


async def test_an_external_plugin_is_asked_for_what_its_protocol_has(tmp_path: Path) -> None:
    with BACKENDS["external"](tmp_path) as backend:
        manager = await backend.open()
        key = await manager.generate(A, KeyType.EC_P256)
        inspected = inspection(manager, use(key))
        found = await inspected.list()
        assert ([each.id for each in found.keys], len(found.not_known)) == ([A], 1)
        [proof] = (await inspected.verify()).proofs
        assert {check.name: check.passed for check in proof.checks} == {
            "public key": True,
            "possession": True,
            "non-exportability": False,
        }
        with pytest.raises(Unsupported):
            await inspected.dispose(A)
        await manager.close()


async def test_the_key_that_seals_is_in_use() -> None:
    class Sealed(MemoryKeyManager):
        async def inventory(self) -> Sequence[KeyRecord]:
            return [KeyRecord("77", "sealing", None, None, "agent/sealing", "a token")]

    inspected = inspection(Sealed())
    [key] = (await inspected.list()).keys
    assert key.used_by[0].purpose == "sealed store"
    with pytest.raises(Refused, match="'sealing' is in use, by the active sealed store"):
        await inspected.dispose(handle="77")
    with pytest.raises(NotFound, match="there is no key to be verified"):
        await inspected.verify()
