"""The further powers by which operators look after keys: every backend that says it has them is held to them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from keystores.errors import NotFound, Refused, TemporarilyUnavailable
from plugins.keyinventory import Disposing, Inventory, KeyRecord, Proving, Withdrawing
from plugins.keymanager import Hash, KeyManager, KeyType, Scheme
from tests.contract.keymanager_backends import BACKENDS, INVENTORY, NEVER_EXPORTED, RETIRING, WITHDRAWING, Backend

DIGEST = hashlib.sha256(b"message").digest()


@pytest.fixture(params=INVENTORY)
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def backend(name: str, tmp_path: Path) -> Iterator[Backend]:
    with BACKENDS[name](tmp_path) as made:
        yield made


async def records(manager: KeyManager) -> dict[str, KeyRecord]:
    """By handle, which must be the key's alone."""
    assert isinstance(manager, Inventory)
    found = await manager.inventory()
    by_handle = {record.handle: record for record in found}
    assert len(by_handle) == len(found)
    return by_handle


async def current(manager: KeyManager, key_id: str) -> KeyRecord:
    [record] = [each for each in (await records(manager)).values() if each.id == key_id and each.retired_at is None]
    return record


@pytest.mark.parametrize("each", sorted(BACKENDS))
async def test_who_has_the_powers_is_listed(each: str, tmp_path: Path) -> None:
    with BACKENDS[each](tmp_path) as backend:
        manager = await backend.open()
        for power in (Inventory, Proving, Disposing):
            assert isinstance(manager, power) == (each in INVENTORY)
        assert isinstance(manager, Withdrawing) == (each in WITHDRAWING)
        await manager.close()


async def test_a_record_says_what_is_known(backend: Backend) -> None:
    manager = await backend.open()
    began = int(time.time())
    made = {
        key_id: await manager.generate(key_id, key_type)
        for key_id, key_type in (("x509-CA-A", KeyType.EC_P256), ("JWT-Signer-A", KeyType.RSA_2048))
    }
    found = {record.id: record for record in (await records(manager)).values()}
    assert set(found) == set(made)
    for key_id, record in found.items():
        assert (record.key_type, record.public_key) == (made[key_id].key_type, made[key_id].public_key)
        assert record.handle
        assert record.label
        assert record.token
        assert record.created_at is not None
        assert began <= record.created_at <= time.time()
        assert (record.retired_at, record.dispose_at, record.last_signature_at) == (None, None, None)
    await made["x509-CA-A"].sign(DIGEST, Scheme(Hash.SHA256))
    signed = await current(manager, "x509-CA-A")
    assert signed.last_signature_at is not None
    assert began <= signed.last_signature_at <= time.time()
    assert (await current(manager, "JWT-Signer-A")).last_signature_at is None
    await manager.close()


async def test_records_outlive_a_durable_manager(backend: Backend) -> None:
    manager = await backend.open()
    await manager.generate("x509-CA-A", KeyType.EC_P256)
    before = await current(manager, "x509-CA-A")
    await manager.close()
    manager = await backend.open()
    after = await records(manager)
    assert set(after) == ({before.handle} if backend.durable else set())
    for record in after.values():
        assert (record.id, record.public_key, record.label) == (before.id, before.public_key, before.label)
        assert record.created_at in (before.created_at, None)
    await manager.close()


async def test_a_proof_says_whether_a_key_can_leave(name: str, backend: Backend) -> None:
    manager = await backend.open()
    key = await manager.generate("x509-CA-A", KeyType.EC_P384)
    assert isinstance(manager, Proving)
    proof = await manager.prove("x509-CA-A")
    assert proof.record.public_key == key.public_key
    checks = {check.name: check for check in proof.checks}
    assert checks["possession"].passed
    assert proof.stands == (name in NEVER_EXPORTED)
    failed = {check.name for check in proof.checks if not check.passed}
    assert failed == (set() if name in NEVER_EXPORTED else {"non-exportability"})
    with pytest.raises(NotFound):
        await manager.prove("nobody")
    await manager.close()


async def test_a_key_with_an_id_is_not_disposed_of(backend: Backend) -> None:
    manager = await backend.open()
    key = await manager.generate("x509-CA-A", KeyType.EC_P256)
    assert isinstance(manager, Disposing)
    with pytest.raises(Refused, match="x509-CA-A"):
        await manager.dispose((await current(manager, "x509-CA-A")).handle)
    with pytest.raises(NotFound):
        await manager.dispose("00ff")
    assert await key.sign(DIGEST, Scheme(Hash.SHA256))
    await manager.close()


@pytest.mark.parametrize("name", WITHDRAWING)
async def test_a_key_is_withdrawn_for_good(backend: Backend) -> None:
    manager = await backend.open()
    for key_id in ("x509-CA-A", "x509-CA-B"):
        await manager.generate(key_id, KeyType.EC_P256)
    assert isinstance(manager, Withdrawing)
    await manager.withdraw((await current(manager, "x509-CA-A")).handle)
    with pytest.raises(NotFound):
        await manager.withdraw("00ff")
    with pytest.raises(NotFound):
        await manager.get("x509-CA-A")
    assert [key.id for key in await manager.list()] == ["x509-CA-B"]
    assert [record.id for record in (await records(manager)).values()] == ["x509-CA-B"]
    await manager.close()
    manager = await backend.open()
    assert [key.id for key in await manager.list()] == (["x509-CA-B"] if backend.durable else [])
    await manager.generate("x509-CA-A", KeyType.EC_P256)
    await manager.close()


@pytest.mark.parametrize("each", RETIRING)
async def test_a_retired_key_is_told_of_until_it_is_disposed_of(each: str, tmp_path: Path) -> None:
    with BACKENDS[each](tmp_path) as backend:
        manager = await backend.open()
        old = await manager.generate("x509-CA-A", KeyType.EC_P256)
        handle = (await current(manager, "x509-CA-A")).handle
        await manager.generate("x509-CA-A", KeyType.EC_P256)
        record = (await records(manager))[handle]
        assert (record.id, record.key_type, record.public_key) == ("x509-CA-A", KeyType.EC_P256, old.public_key)
        assert record.retired_at is not None
        assert record.dispose_at is not None
        assert record.dispose_at > record.retired_at
        await manager.close()
        manager = await backend.open()
        kept = (await records(manager))[handle]
        assert (kept.created_at, kept.retired_at) == (record.created_at, record.retired_at)
        assert isinstance(manager, Disposing)
        await manager.dispose(handle)
        assert handle not in await records(manager)
        with pytest.raises(NotFound):
            await manager.dispose(handle)
        assert (await manager.get("x509-CA-A")).public_key != old.public_key
        await manager.close()


async def test_a_closed_manager_tells_nothing(backend: Backend) -> None:
    manager = await backend.open()
    await manager.close()
    assert isinstance(manager, Inventory)
    assert isinstance(manager, Proving)
    assert isinstance(manager, Disposing)
    for call in (manager.inventory(), manager.prove("key"), manager.dispose("key")):
        with pytest.raises(TemporarilyUnavailable):
            await call
    if isinstance(manager, Withdrawing):
        with pytest.raises(TemporarilyUnavailable):
            await manager.withdraw("key")
