"""The key manager contract, held against every backend."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from keystores.errors import InvalidArgument, NotFound, TemporarilyUnavailable, Unsupported
from plugins.keymanager import Hash, Key, KeyManager, KeyType, Scheme
from tests.contract.keymanager_backends import BACKENDS, BUILT_ON_DEMAND, LACKING, Backend

SHA256 = Scheme(Hash.SHA256)
ALGORITHMS = {Hash.SHA256: hashes.SHA256(), Hash.SHA384: hashes.SHA384(), Hash.SHA512: hashes.SHA512()}


@pytest.fixture(
    params=[*sorted(BACKENDS), *(pytest.param(name, marks=pytest.mark.interop) for name in sorted(BUILT_ON_DEMAND))]
)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    with (BACKENDS | BUILT_ON_DEMAND)[request.param](tmp_path) as made:
        yield made


@pytest.fixture
async def manager(backend: Backend) -> AsyncIterator[KeyManager]:
    opened = await backend.open()
    yield opened
    await opened.close()


def digests(count: int, scheme: Scheme = SHA256) -> list[bytes]:
    return [hashlib.new(scheme.hash.value, b"message %d" % number).digest() for number in range(count)]


def verify(public_key: bytes, signature: bytes, digest: bytes, scheme: Scheme) -> None:
    """By `cryptography`, from nothing but the public key's DER. Raises InvalidSignature."""
    key = serialization.load_der_public_key(public_key)
    algorithm = ALGORITHMS[scheme.hash]
    if isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(signature, digest, ec.ECDSA(Prehashed(algorithm)))
    else:
        assert isinstance(key, rsa.RSAPublicKey)
        pss = padding.PSS(padding.MGF1(algorithm), algorithm.digest_size)
        key.verify(signature, digest, pss if scheme.pss else padding.PKCS1v15(), Prehashed(algorithm))


def shape(public_key: bytes) -> str:
    key = serialization.load_der_public_key(public_key)
    if isinstance(key, ec.EllipticCurvePublicKey):
        return {"secp256r1": "ec-p256", "secp384r1": "ec-p384"}[key.curve.name]
    assert isinstance(key, rsa.RSAPublicKey)
    assert key.public_numbers().e == 65537
    return f"rsa-{key.key_size}"


@pytest.mark.parametrize("key_type", list(KeyType), ids=lambda key_type: key_type.value)
async def test_a_generated_key_signs_in_every_scheme_of_its_type(
    manager: KeyManager, key_type: KeyType, request: pytest.FixtureRequest
) -> None:
    if key_type in LACKING.get(request.node.callspec.params["backend"], ()):
        with pytest.raises(Unsupported, match=key_type.value):
            await manager.generate("x509-CA-A", key_type)
        return
    key = await manager.generate("x509-CA-A", key_type)

    assert (key.id, key.key_type, shape(key.public_key)) == ("x509-CA-A", key_type, key_type.value)
    padding_choices = (False, True) if key_type.value.startswith("rsa") else (False,)
    for scheme in (Scheme(hash_, pss) for hash_ in Hash for pss in padding_choices):
        [digest] = digests(1, scheme)
        verify(key.public_key, await key.sign(digest, scheme), digest, scheme)


@pytest.mark.parametrize("key_type", [KeyType.EC_P256, KeyType.RSA_2048], ids=lambda key_type: key_type.value)
async def test_a_batch_is_signed_in_order(manager: KeyManager, key_type: KeyType) -> None:
    key = await manager.generate("JWT-Signer-A", key_type)
    wanted = digests(50)

    signatures = await key.sign_batch(wanted, SHA256)

    assert len(signatures) == len(wanted)
    for digest, signature in zip(wanted, signatures, strict=True):
        verify(key.public_key, signature, digest, SHA256)
    with pytest.raises(InvalidSignature):
        verify(key.public_key, signatures[0], wanted[1], SHA256)
    assert await key.sign_batch([], SHA256) == []


@pytest.mark.parametrize("size", [0, 31, 33, 48])
async def test_a_digest_of_the_wrong_length_is_refused(manager: KeyManager, size: int) -> None:
    key = await manager.generate("key", KeyType.EC_P256)
    with pytest.raises(InvalidArgument, match=f"a sha256 digest has 32 bytes, this one has {size}"):
        await key.sign_batch([*digests(1), bytes(size)], SHA256)


async def test_a_new_key_takes_the_id_of_an_old_one(manager: KeyManager) -> None:
    old = await manager.generate("x509-CA-A", KeyType.EC_P256)
    other = await manager.generate("x509-CA-B", KeyType.EC_P256)
    new = await manager.generate("x509-CA-A", KeyType.EC_P384)

    assert (await manager.get("x509-CA-A")).public_key == new.public_key != old.public_key
    assert {key.id: key.public_key for key in await manager.list()} == {
        "x509-CA-A": new.public_key,
        "x509-CA-B": other.public_key,
    }
    [digest] = digests(1)
    verify(new.public_key, await (await manager.get("x509-CA-A")).sign(digest, SHA256), digest, SHA256)


async def test_an_unknown_id_is_not_found(manager: KeyManager) -> None:
    assert list(await manager.list()) == []
    with pytest.raises(NotFound, match="nobody"):
        await manager.get("nobody")


async def test_a_key_without_an_id_is_refused(manager: KeyManager) -> None:
    with pytest.raises(InvalidArgument):
        await manager.generate("", KeyType.EC_P256)


async def test_keys_outlive_a_durable_manager(backend: Backend) -> None:
    first = await backend.open()
    made = {
        key_id: (await first.generate(key_id, key_type)).public_key
        for key_id, key_type in (("x509-CA-A", KeyType.EC_P384), ("JWT-Signer-A", KeyType.RSA_2048))
    }
    await first.close()

    second = await backend.open()
    kept = {key.id: key.public_key for key in await second.list()}
    assert kept == (made if backend.durable else {})
    [digest] = digests(1)
    for key in await second.list():
        verify(key.public_key, await key.sign(digest, SHA256), digest, SHA256)
    await second.close()


async def test_a_closed_manager_is_unavailable(backend: Backend) -> None:
    manager = await backend.open()
    await manager.generate("key", KeyType.EC_P256)
    await manager.close()
    await manager.close()
    for call in (manager.generate("key", KeyType.EC_P256), manager.get("key"), manager.list()):
        with pytest.raises(TemporarilyUnavailable):
            await call


async def test_sixteen_callers_at_once(manager: KeyManager) -> None:
    keys = [await manager.generate(f"key-{number}", KeyType.EC_P256) for number in range(2)]

    async def use(key: Key, caller: int) -> None:
        for count in (1, 5):
            wanted = [hashlib.sha256(b"%d %d" % (caller, number)).digest() for number in range(count)]
            for digest, signature in zip(wanted, await key.sign_batch(wanted, SHA256), strict=True):
                verify(key.public_key, signature, digest, SHA256)

    await asyncio.gather(*(use(keys[caller % 2], caller) for caller in range(16)))


async def test_concurrent_generations_all_last(backend: Backend) -> None:
    manager = await backend.open()
    made = await asyncio.gather(*(manager.generate(f"key-{number}", KeyType.EC_P256) for number in range(4)))
    await manager.close()
    again = await backend.open()
    kept = {key.id: key.public_key for key in await again.list()}
    assert kept == ({key.id: key.public_key for key in made} if backend.durable else {})
    await again.close()
