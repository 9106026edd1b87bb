"""A KeyManager "pkcs11" on a module with faults, its signatures and keys looked at by others than itself."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from keystores.errors import TemporarilyUnavailable
from keystores.pkcs11 import mapping
from keystores.pkcs11.configuration import Configuration
from keystores.pkcs11.manager import load_server
from operations import logs
from plugins.catalog import PluginContext
from plugins.keymanager import Hash, Key, KeyManager, Scheme
from tests.simulators.faulty_hsm import FaultyHsm
from tests.simulators.softhsm import SoftHsm

SHA256 = Scheme(Hash.SHA256)
DIGEST = hashlib.sha256(b"message").digest()
RECOVERY = 25.0
"""Seconds that a key manager may take to recover from anything."""
PATIENCE = 30.0
"""Seconds that any call may take: its deadline, well below, and a slow machine."""


def configured(hsm: SoftHsm, faults: FaultyHsm, name: str = "server", **changes: Any) -> Configuration:
    configuration = Configuration(
        module_path=faults.module_path,
        token_label=hsm.label,
        pin_file=str(hsm.pin_file),
        namespace=name,
        keys_path=str(keys_path(hsm, name)),
    )
    return msgspec.structs.replace(configuration, **changes)


def keys_path(hsm: SoftHsm, name: str = "server") -> Path:
    return hsm.folder / f"{name}.json"


async def load(hsm: SoftHsm, faults: FaultyHsm, name: str = "server", **changes: Any) -> KeyManager:
    context = PluginContext(trust_domain="example.org", data_dir=None, log=logs.get("pkcs11"))
    return await load_server(configured(hsm, faults, name, **changes), context)


@asynccontextmanager
async def opened(hsm: SoftHsm, faults: FaultyHsm, name: str = "server", **changes: Any) -> AsyncGenerator[KeyManager]:
    manager = await load(hsm, faults, name, **changes)
    try:
        yield manager
    finally:
        faults.lift_all()
        await manager.close()


def digests(count: int) -> list[bytes]:
    return [hashlib.sha256(b"message %d" % number).digest() for number in range(count)]


async def signs(key: Key, count: int = 1, scheme: Scheme = SHA256) -> None:
    """Have it sign, and verify by nothing but the public key's DER. Raises InvalidSignature for what is none."""
    wanted = digests(count)
    public_key = serialization.load_der_public_key(key.public_key)
    for digest, signature in zip(wanted, await key.sign_batch(wanted, scheme), strict=True):
        if isinstance(public_key, ec.EllipticCurvePublicKey):
            public_key.verify(signature, digest, ec.ECDSA(Prehashed(hashes.SHA256())))
        else:
            assert isinstance(public_key, rsa.RSAPublicKey)
            pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
            pad = pss if scheme.pss else padding.PKCS1v15()
            public_key.verify(signature, digest, pad, Prehashed(hashes.SHA256()))


async def recovers(key: Key, seconds: float = RECOVERY) -> None:
    """Wait until it signs again. The machine may be slow; the product may not."""
    async with asyncio.timeout(2 * seconds):
        while True:
            try:
                await signs(key)
                return
            except TemporarilyUnavailable:
                await asyncio.sleep(0.05)


def private_keys(hsm: SoftHsm) -> set[str]:
    """The CKA_IDs of the token's private keys, in hex, as pkcs11-tool sees them."""
    found = re.findall(r"ID: +([0-9a-f]+)\n", hsm.tool("--list-objects", "--type", "privkey"))
    assert len(found) == len(set(found)), f"a CKA_ID has two private keys: {found}"
    return set(found)


def accounted_for(hsm: SoftHsm, names: Iterable[str] = ("server",)) -> set[str]:
    """The CKA_IDs that the mappings of these key managers name, those of retired keys too."""
    ids: set[str] = set()
    for name in names:
        stored = mapping.read(keys_path(hsm, name))
        if stored is not None:
            ids |= {key.cka_id for key in stored.keys.values()} | {key.cka_id for key in stored.retired}
    return ids
