"""What a key manager plugin answers is checked before it is believed."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal

import pytest

from keystores import errors, external
from keystores.external import SIGNATURES_AT_ONCE
from plugins.external import process
from plugins.keymanager import Hash, KeyType, Scheme
from tests.simulators.spire import eventually
from tests.unit.plugins.external.conftest import Load, Log
from transport.errors import status_of
from transport.status import Code

SHA256 = Scheme(Hash.SHA256)
DIGEST = hashlib.sha256(b"message").digest()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "GRACE", 0.5)


@pytest.mark.parametrize(
    ("word", "fault"),
    [
        ("no-key", 'plugin response empty for key "key"'),
        ("wrong-id", 'plugin response has unexpected key id "another" for key "key"'),
        ("no-pkix", 'plugin response missing public key PKIX data for key "key"'),
        (
            "bad-pkix",
            'unable to parse public key PKIX data for key "key": this is no DER SubjectPublicKeyInfo',
        ),
        ("wrong-type", 'plugin generated a key of type ec-p384 for "key", not ec-p256'),
    ],
)
async def test_a_key_that_is_not_what_was_asked_for(load: Load, word: str, fault: str) -> None:
    manager = await load("KeyManager", word)
    with pytest.raises(errors.PermanentlyUnusable) as error:
        await manager.generate("key", KeyType.EC_P256)
    assert str(error.value) == f"rpc error: code = Internal desc = keymanager(py): {fault}"
    assert status_of(error.value).code is Code.INTERNAL


@pytest.mark.parametrize(
    ("word", "fault"),
    [
        ("empty-signature", "keymanager(py): plugin returned empty signature data"),
        ("wrong-fingerprint", 'keymanager(py): fingerprint "fingerprint 1" on key "key" does not match "another"'),
        ("wrong-signature", "the device returned a signature that does not verify; it was not used"),
    ],
)
async def test_a_signature_that_is_none(load: Load, word: str, fault: str) -> None:
    manager = await load("KeyManager", word)
    key = await manager.generate("key", KeyType.EC_P256)
    with pytest.raises(errors.PermanentlyUnusable) as error:
        await key.sign(DIGEST, SHA256)
    assert str(error.value).endswith(fault)
    with pytest.raises(errors.PermanentlyUnusable):
        await key.sign_batch([DIGEST] * 50, SHA256)


async def test_the_plugins_own_error_keeps_its_status(load: Load) -> None:
    manager = await load("KeyManager", "fails-in-sign")
    key = await manager.generate("key", KeyType.EC_P256)
    with pytest.raises(errors.TemporarilyUnavailable) as error:
        await key.sign(DIGEST, SHA256)
    assert str(error.value) == "rpc error: code = Unavailable desc = keymanager(py): the device is away"


async def test_a_plugin_that_dies_in_a_call(load: Load, log: Log) -> None:
    manager = await load("KeyManager", "dies-in-sign")
    key = await manager.generate("key", KeyType.EC_P256)
    for _ in range(2):
        with pytest.raises(errors.TemporarilyUnavailable, match=r"^rpc error: code = Unavailable desc = keymanager"):
            await key.sign_batch([DIGEST] * (2 * SIGNATURES_AT_ONCE), SHA256)
    with pytest.raises(errors.TemporarilyUnavailable):
        await manager.generate("key", KeyType.EC_P256)
    await asyncio.to_thread(eventually, lambda: log.named("plugin process exited"), "the plugin's end")
    assert log.named("plugin process exited")[0]["error"] == "exit status 9"


async def test_a_plugin_that_hangs_meets_the_deadline(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = await load("KeyManager", "hangs-in-sign")
    key = await manager.generate("key", KeyType.EC_P256)
    monkeypatch.setattr(external, "TIMEOUT", 0.3)
    with pytest.raises(errors.TemporarilyUnavailable, match="DeadlineExceeded desc = keymanager"):
        await key.sign(DIGEST, SHA256)


async def test_a_stopped_plugin_meets_the_deadline(load: Load, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not even read: SIGSTOP."""
    manager = await load("KeyManager")
    key = await manager.generate("key", KeyType.EC_P256)
    monkeypatch.setattr(external, "TIMEOUT", 0.3)
    pid = log.named("plugin started")[0]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(errors.TemporarilyUnavailable, match="DeadlineExceeded"):
            await key.sign(DIGEST, SHA256)
    finally:
        os.kill(pid, signal.SIGCONT)
    monkeypatch.setattr(external, "TIMEOUT", 30.0)
    assert await key.sign(DIGEST, SHA256)


async def test_an_answer_that_is_too_large(load: Load) -> None:
    manager = await load("KeyManager", "oversize")
    with pytest.raises(errors.TemporarilyUnavailable, match="received message larger than max"):
        await manager.list()


async def test_keys_of_other_types_are_left_out(load: Load) -> None:
    manager = await load("KeyManager", "foreign-key")
    await manager.generate("key", KeyType.EC_P256)
    assert [key.id for key in await manager.list()] == ["key"]
    with pytest.raises(errors.Unsupported):
        await manager.get("foreign")


async def test_a_key_is_looked_at_again_after_it_was_replaced(load: Load) -> None:
    manager = await load("KeyManager")
    old = await manager.generate("key", KeyType.EC_P256)
    await manager.generate("key", KeyType.EC_P256)
    with pytest.raises(errors.PermanentlyUnusable, match="does not match"):
        await old.sign(DIGEST, SHA256)


async def test_a_closed_manager_fails_calls_that_run(load: Load) -> None:
    manager = await load("KeyManager", "hangs-in-sign")
    key = await manager.generate("key", KeyType.EC_P256)
    signing = asyncio.create_task(key.sign(DIGEST, SHA256))
    await asyncio.sleep(0.2)
    await manager.close()
    with pytest.raises(errors.TemporarilyUnavailable):
        await signing
