"""Key managers on simulated TPMs, with the patience of a test."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import load_der_public_key

from keystores.tpm.configuration import Configuration
from keystores.tpm.manager import SERVER_KEYS, TpmKeyManager, load
from keystores.tpm.worker import PATIENCE, Patience
from operations import logs
from plugins.catalog import PluginContext
from plugins.keymanager import Hash, Key, Scheme

CONTEXT = PluginContext(trust_domain="example.org", data_dir=None, log=logs.get("tpm"))
SHA256 = Scheme(Hash.SHA256)
DIGEST = hashlib.sha256(b"message").digest()
SHORT = Patience(answer=2.0, creation=3.0, busy=0.5, hold_off=0.1, hang_hold_off=0.2, closing=3.0)


async def opened(
    tcti: str, keys: Path, patience: Patience = PATIENCE, limit: int = SERVER_KEYS, **settings: str
) -> TpmKeyManager:
    return await load(Configuration(tcti=tcti, keys_path=str(keys), **settings), CONTEXT, limit, patience)


async def check_signs(key: Key) -> None:
    """Raises what signing raises, InvalidSignature for a wrong one. For EC keys."""
    public = load_der_public_key(key.public_key)
    assert isinstance(public, ec.EllipticCurvePublicKey)
    public.verify(await key.sign(DIGEST, SHA256), DIGEST, ec.ECDSA(Prehashed(hashes.SHA256())))
