"""Several tokens for one key set: clones sign while the primary is away, and only as keys that they have."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import shutil
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from keystores.errors import NotFound, TemporarilyUnavailable
from keystores.pkcs11 import device as devices
from keystores.pkcs11 import tokens
from keystores.pkcs11.batches import Signer
from keystores.pkcs11.configuration import CloneConfiguration
from keystores.pkcs11.protocol import Mechanism
from operations.errors import ConfigurationError
from plugins.keymanager import Hash, Key, KeyType, Scheme
from tests.simulators.softhsm import SoftHsm
from tests.unit.keystores.tokens import opened, private_objects

SHA256 = Scheme(Hash.SHA256)
DIGEST = hashlib.sha256(b"message").digest()


@pytest.fixture(autouse=True)
def everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "spire")


@pytest.fixture
def clone(hsm: SoftHsm) -> SoftHsm:
    """Another device, with a token of the same label that has nothing yet."""
    return SoftHsm.create(hsm.folder.with_name("clone"))


def copy(hsm: SoftHsm, clone: SoftHsm) -> None:
    """What an operator does with a device that does not copy keys by itself."""
    shutil.rmtree(clone.tokens)
    shutil.copytree(hsm.tokens, clone.tokens)


def with_clone(clone: SoftHsm, **changes: Any) -> dict[str, Any]:
    settings = CloneConfiguration(environment={"SOFTHSM2_CONF": str(clone.configuration)}, **changes)
    return {"clone": {"b": settings}}


async def signs(key: Key) -> None:
    """As the key that it was: the first token's."""
    public = serialization.load_der_public_key(key.public_key)
    assert isinstance(public, ec.EllipticCurvePublicKey)
    public.verify(await key.sign(DIGEST, SHA256), DIGEST, ec.ECDSA(Prehashed(hashes.SHA256())))


def take_away(hsm: SoftHsm) -> Callable[[], None]:
    away = hsm.tokens.rename(hsm.folder / "away")

    def bring_back() -> None:
        away.rename(hsm.tokens)

    return bring_back


def said(caplog: pytest.LogCaptureFixture, text: str) -> int:
    return sum(text in record.getMessage() for record in caplog.records)


async def until_said(caplog: pytest.LogCaptureFixture, text: str) -> None:
    async with asyncio.timeout(30):
        while not said(caplog, text):  # noqa: ASYNC110 - a log has no event
            await asyncio.sleep(0.02)


async def test_a_clone_signs_while_the_primary_is_away(
    hsm: SoftHsm, clone: SoftHsm, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "LAST_PROBE", 0.5)
    async with opened(hsm) as manager:
        await manager.generate("x509-CA-A", KeyType.EC_P256)
    copy(hsm, clone)
    async with opened(hsm, **with_clone(clone)) as manager:
        key = await manager.get("x509-CA-A")
        await signs(key)
        assert not said(caplog, "A clone signs")

        bring_back = take_away(hsm)
        await asyncio.gather(*(signs(key) for _ in range(20)))
        assert len(await key.sign_batch([DIGEST] * 300, SHA256)) == 300
        assert said(caplog, "A clone signs in place of the primary token") == 1
        with pytest.raises(TemporarilyUnavailable):
            await manager.generate("x509-CA-B", KeyType.EC_P256)

        bring_back()
        await until_said(caplog, "The token is back")
        await signs(key)
        assert said(caplog, "The primary token signs again") == 1
        await signs(await manager.generate("x509-CA-B", KeyType.EC_P256))


async def test_a_key_that_was_not_copied_is_told_and_not_signed_for(
    hsm: SoftHsm, clone: SoftHsm, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "LOOK_AGAIN", 0.0)
    async with opened(hsm, **with_clone(clone)) as manager:
        key = await manager.generate("x509-CA-A", KeyType.EC_P256)
        await until_said(caplog, "The clone lacks a key: copy it there")
        take_away(hsm)
        for _ in range(5):
            with pytest.raises(TemporarilyUnavailable):
                await key.sign(DIGEST, SHA256)
    assert said(caplog, "The clone lacks a key") == 1


async def test_a_key_of_the_same_cka_id_that_is_another_is_not_used(
    hsm: SoftHsm, clone: SoftHsm, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(hsm) as manager:
        await manager.generate("x509-CA-A", KeyType.EC_P256)
    [cka_id] = re.findall(r"ID: +([0-9a-f]+)\n", "".join(private_objects(hsm)))
    clone.tool("--keypairgen", "--key-type", "EC:prime256v1", "--label", "server-a/x509-CA-A", "--id", cka_id)
    async with opened(hsm, **with_clone(clone)) as manager:
        await until_said(caplog, "another key under the same CKA_ID")
        take_away(hsm)
        key = await manager.get("x509-CA-A")
        with pytest.raises(TemporarilyUnavailable):
            await key.sign(DIGEST, SHA256)


async def test_a_clone_that_signs_wrongly_is_not_used_again(
    hsm: SoftHsm, clone: SoftHsm, caplog: pytest.LogCaptureFixture
) -> None:
    """It has another key under the CKA_ID, and no public key object that would tell."""
    async with opened(hsm) as manager:
        await manager.generate("x509-CA-A", KeyType.EC_P256)
    [cka_id] = re.findall(r"ID: +([0-9a-f]+)\n", "".join(private_objects(hsm)))
    clone.tool("--keypairgen", "--key-type", "EC:prime256v1", "--label", "server-a/x509-CA-A", "--id", cka_id)
    clone.tool("--delete-object", "--type", "pubkey", "--id", cka_id)
    async with opened(hsm, **with_clone(clone)) as manager:
        take_away(hsm)
        key = await manager.get("x509-CA-A")
        for _ in range(3):
            with pytest.raises(TemporarilyUnavailable):
                await key.sign(DIGEST, SHA256)
    assert said(caplog, "The clone's signature does not verify") == 1


async def test_a_start_without_the_primary_signs_by_a_clone(
    hsm: SoftHsm, clone: SoftHsm, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "LAST_PROBE", 0.5)
    async with opened(hsm) as manager:
        await manager.generate("x509-CA-A", KeyType.EC_P256)
    copy(hsm, clone)
    bring_back = take_away(hsm)
    async with opened(hsm, **with_clone(clone)) as manager:
        await signs(await manager.get("x509-CA-A"))
        bring_back()
        await until_said(caplog, "The token is back")
        await signs(await manager.generate("x509-CA-A", KeyType.EC_P256))
    assert len(private_objects(hsm)) == 2


async def test_a_first_start_needs_the_primary(hsm: SoftHsm, clone: SoftHsm) -> None:
    take_away(hsm)
    with pytest.raises((NotFound, TemporarilyUnavailable)):
        async with opened(hsm, **with_clone(clone)):
            pass


async def test_a_clone_that_is_away_at_the_start_is_found_later(
    hsm: SoftHsm, clone: SoftHsm, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "LAST_PROBE", 0.5)
    async with opened(hsm) as manager:
        await manager.generate("x509-CA-A", KeyType.EC_P256)
    copy(hsm, clone)
    bring_back = take_away(clone)
    async with opened(hsm, **with_clone(clone)) as manager:
        key = await manager.get("x509-CA-A")
        await signs(key)
        bring_back()
        await until_said(caplog, "The token is back")
        take_away(hsm)
        await signs(key)


async def test_a_disposed_key_goes_from_the_clone_too(hsm: SoftHsm, clone: SoftHsm) -> None:
    async with opened(hsm) as manager:
        await manager.generate("x509-CA-A", KeyType.EC_P256)
    copy(hsm, clone)
    async with opened(hsm, grace="0s", **with_clone(clone)) as manager:
        await manager.generate("x509-CA-A", KeyType.EC_P256)
    assert len(private_objects(hsm)) == 1
    assert private_objects(clone) == []


async def test_a_device_that_lies_is_replaced_by_its_clone(
    hsm: SoftHsm, clone: SoftHsm, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(hsm) as manager:
        await manager.generate("x509-CA-A", KeyType.EC_P256)
    copy(hsm, clone)
    honest = Signer.sign
    asked: list[Signer] = []

    async def first_lies(self: Signer, key: bytes | str, mechanism: Mechanism, payloads: list[bytes]) -> list[bytes]:
        asked.append(self)
        return await honest(self, key, mechanism, [DIGEST[::-1]] if len(asked) == 1 else payloads)

    async with opened(hsm, **with_clone(clone)) as manager:
        monkeypatch.setattr(Signer, "sign", first_lies)
        await signs(await manager.get("x509-CA-A"))
        assert len(set(asked)) == 2


async def test_a_clone_that_is_the_first_token_is_refused(hsm: SoftHsm) -> None:
    with pytest.raises(ConfigurationError, match="clone 'b': it names the first token again"):
        async with opened(hsm, clone={"b": CloneConfiguration()}):
            pass
