"""Key managers on simulated TPMs, with the patience of a test."""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import load_der_public_key

from keystores.errors import TemporarilyUnavailable
from keystores.tpm.blobs import Folder
from keystores.tpm.configuration import Configuration
from keystores.tpm.manager import SERVER_KEYS, Policy, TpmKeyManager, load
from keystores.tpm.messages import Place
from keystores.tpm.worker import PATIENCE, Patience, Worker
from operations import logs
from plugins.catalog import PluginContext
from plugins.keymanager import Hash, Key, Scheme

CONTEXT = PluginContext(trust_domain="example.org", data_dir=None, log=logs.get("tpm"))
SHA256 = Scheme(Hash.SHA256)
DIGEST = hashlib.sha256(b"message").digest()
SHORT = Patience(answer=2.0, creation=3.0, busy=0.5, hold_off=0.1, hang_hold_off=0.2, closing=3.0)


@dataclass(frozen=True)
class Parts:
    """What a key manager is opened with, to look at besides it."""

    worker: Worker
    folder: Folder
    policy: Policy

    @classmethod
    def of(cls, tcti: str, keys: Path, patience: Patience = PATIENCE) -> Parts:
        return cls(Worker(Place(tcti=tcti), patience), Folder(keys), Policy(limit=SERVER_KEYS, grace=3600.0, pcrs=None))

    async def opened(self) -> TpmKeyManager:
        return await TpmKeyManager.open(self.worker, self.folder, self.policy, CONTEXT.log)


async def opened(tcti: str, keys: Path, **settings: str) -> TpmKeyManager:
    return await load(Configuration(tcti=tcti, keys_path=str(keys), **settings), CONTEXT, SERVER_KEYS)


async def signs_again(key: Key) -> None:
    """Within the 25 s that operators rely on."""
    end = time.monotonic() + 25
    while True:
        try:
            await check_signs(key)
        except TemporarilyUnavailable:
            assert time.monotonic() < end
            await asyncio.sleep(0.1)
        else:
            return


async def check_signs(key: Key) -> None:
    """Raises what signing raises, InvalidSignature for a wrong one. For EC keys."""
    public = load_der_public_key(key.public_key)
    assert isinstance(public, ec.EllipticCurvePublicKey)
    public.verify(await key.sign(DIGEST, SHA256), DIGEST, ec.ECDSA(Prehashed(hashes.SHA256())))
