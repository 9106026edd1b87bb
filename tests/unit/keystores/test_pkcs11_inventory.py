"""What is told of keys in a token, and whom disposal leaves alone: tokens that vanish, keys that others use."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Sequence

import pytest

from keystores.errors import NotFound, PermanentlyUnusable, Refused, TemporarilyUnavailable
from keystores.pkcs11.manager import Pkcs11KeyManager
from plugins.keyinventory import KeyRecord
from plugins.keymanager import Hash, KeyManager, KeyType, Scheme
from tests.simulators.softhsm import SoftHsm
from tests.unit.keystores.tokens import opened, private_objects

SHA256 = Scheme(Hash.SHA256)
DIGEST = hashlib.sha256(b"message").digest()
A = "x509-CA-A"


async def records(manager: KeyManager) -> Sequence[KeyRecord]:
    assert isinstance(manager, Pkcs11KeyManager)
    return await manager.inventory()


async def handle(manager: KeyManager, key_id: str = A) -> str:
    [record] = [each for each in await records(manager) if each.id == key_id and each.retired_at is None and each.named]
    return record.handle


async def proven(manager: Pkcs11KeyManager) -> bool:
    try:
        return (await manager.prove(A)).stands
    except TemporarilyUnavailable:
        return False


def destroy_outside(hsm: SoftHsm, cka_id: str) -> None:
    for kind in ("privkey", "pubkey"):
        hsm.tool("--delete-object", "--type", kind, "--id", cka_id)


async def test_a_record_has_what_the_token_says(hsm: SoftHsm) -> None:
    async with opened(hsm) as manager:
        await manager.generate(A, KeyType.EC_P256)
        [record] = await records(manager)
    [outside] = private_objects(hsm)
    assert f"ID:         {record.handle}" in outside
    assert record.label == "server-a/x509-CA-A"
    assert record.token.startswith("spire, serial ")
    assert {name for name, value in record.attributes.items() if value} == {
        "CKA_TOKEN", "CKA_PRIVATE", "CKA_SENSITIVE", "CKA_ALWAYS_SENSITIVE", "CKA_NEVER_EXTRACTABLE", "CKA_LOCAL",
        "CKA_SIGN",
    }  # fmt: skip
    assert {name for name, value in record.attributes.items() if not value} == {
        "CKA_EXTRACTABLE", "CKA_DECRYPT", "CKA_UNWRAP", "CKA_DERIVE",
    }  # fmt: skip


async def test_keys_of_earlier_releases_have_no_time(hsm: SoftHsm) -> None:
    """What wrote the mapping did not write when a key was made, nor of a key that seals."""
    path = hsm.folder / "keys.json"
    async with opened(hsm) as manager:
        for _ in range(2):
            await manager.generate(A, KeyType.EC_P256)
    stored = json.loads(path.read_bytes())
    del stored["keys"][A]["created_at"], stored["retired"][0]["created_at"], stored["sealing_key"]
    path.write_text(json.dumps(stored))
    async with opened(hsm) as manager:
        assert [each.created_at for each in await records(manager)] == [None, None]
        assert isinstance(manager, Pkcs11KeyManager)
        assert (await manager.prove(A)).stands


async def test_a_token_that_vanishes_is_away_and_not_empty(hsm: SoftHsm) -> None:
    """The loaded module goes on without an error, and shows nothing, until it is loaded anew."""
    async with opened(hsm) as manager:
        assert isinstance(manager, Pkcs11KeyManager)
        await manager.generate(A, KeyType.EC_P256)
        away = hsm.tokens.rename(hsm.folder / "unplugged")
        for call in (manager.inventory(), manager.prove(A), manager.sealing_secret("label")):
            with pytest.raises(TemporarilyUnavailable):
                await call
        away.rename(hsm.tokens)
        async with asyncio.timeout(60):
            while not await proven(manager):  # noqa: ASYNC110 - nobody tells that the token is back
                await asyncio.sleep(0.1)
        assert [each.id for each in await records(manager)] == [A]


async def test_a_key_that_was_taken_from_the_token_is_told_of(hsm: SoftHsm) -> None:
    async with opened(hsm) as manager:
        assert isinstance(manager, Pkcs11KeyManager)
        for key_id in (A, "x509-CA-B"):
            await manager.generate(key_id, KeyType.EC_P256)
        destroy_outside(hsm, await handle(manager))
        found = {record.id: record for record in await records(manager)}
        assert set(found) == {A, "x509-CA-B"}
        assert (found[A].label, found[A].token, found[A].attributes) == ("", "", {})
        with pytest.raises(PermanentlyUnusable, match="the token has 0 private keys with CKA_ID"):
            await manager.prove(A)
        assert (await manager.prove("x509-CA-B")).stands


async def test_a_public_key_of_another_key_fails_the_proof(hsm: SoftHsm) -> None:
    async with opened(hsm) as manager:
        assert isinstance(manager, Pkcs11KeyManager)
        await manager.generate(A, KeyType.EC_P256)
        await manager.generate("x509-CA-B", KeyType.EC_P256)
        first, second = await handle(manager), await handle(manager, "x509-CA-B")
        hsm.tool("--delete-object", "--type", "pubkey", "--id", first)
        hsm.tool("--read-object", "--type", "pubkey", "--id", second, "-o", str(hsm.folder / "other.der"))
        hsm.tool("--write-object", str(hsm.folder / "other.der"), "--type", "pubkey", "--id", first)
        proof = await manager.prove(A)
        assert not proof.stands
        assert [check.name for check in proof.checks if not check.passed] == ["public key object"]


async def test_keys_that_are_shared_are_not_disposed_of(hsm: SoftHsm) -> None:
    """By no command, by no rotation, and however short the grace is: another server may use them."""
    async with opened(hsm, shared_keys=True, grace="0s") as manager:
        assert isinstance(manager, Pkcs11KeyManager)
        for _ in range(3):
            await manager.generate(A, KeyType.EC_P256)
        found = await records(manager)
        assert len(found) == 3
        retired = [record for record in found if record.retired_at is not None]
        assert [record.dispose_at for record in retired] == [None, None]
        with pytest.raises(Refused, match="shared"):
            await manager.dispose(retired[0].handle)
        with pytest.raises(Refused, match="shared"):
            await manager.withdraw(await handle(manager))
    async with opened(hsm, shared_keys=True, keys_path=str(hsm.folder / "b.json"), grace="0s") as other:
        await other.generate("x509-CA-B", KeyType.EC_P256)
        others = {record.id: record for record in await records(other)}
        assert others["x509-CA-B"].named
    async with opened(hsm, shared_keys=True, grace="0s") as manager:
        strange = [record for record in await records(manager) if not record.named]
        assert [record.id for record in strange] == ["x509-CA-B"]
        assert isinstance(manager, Pkcs11KeyManager)
        with pytest.raises(NotFound):
            await manager.dispose(strange[0].handle)
    assert len(private_objects(hsm)) == 4


async def test_another_namespace_is_not_seen(hsm: SoftHsm) -> None:
    async with opened(hsm, grace="0s") as first:
        await first.generate(A, KeyType.EC_P256)
        taken = await handle(first)
        async with opened(hsm, namespace="server-b", keys_path=str(hsm.folder / "b.json"), grace="0s") as second:
            assert list(await records(second)) == []
            assert isinstance(second, Pkcs11KeyManager)
            with pytest.raises(NotFound):
                await second.dispose(taken)
            for _ in range(12):
                await second.generate(A, KeyType.EC_P256)
        key = await first.get(A)
        assert await key.sign(DIGEST, SHA256)


async def test_operators_leave_a_line_in_the_log(hsm: SoftHsm, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "spire")
    async with opened(hsm) as manager:
        assert isinstance(manager, Pkcs11KeyManager)
        await manager.generate(A, KeyType.EC_P256)
        await manager.withdraw((await handle(manager)).upper())
        assert list(await manager.list()) == []
    assert any("by an operator's wish" in record.getMessage() for record in caplog.records)
    assert private_objects(hsm) == []


async def test_each_challenge_is_fresh(hsm: SoftHsm) -> None:
    async with opened(hsm) as manager:
        assert isinstance(manager, Pkcs11KeyManager)
        await manager.generate(A, KeyType.RSA_2048)
        found = {(await manager.prove(A)).checks[0].found for _ in range(3)}
    assert len(found) == 3
