"""What every proof of a key begins with: a fresh challenge, signed by the key and verified."""

from __future__ import annotations

import hashlib
import secrets

from keystores import public_keys
from keystores.errors import PermanentlyUnusable
from plugins.keyinventory import Check
from plugins.keymanager import Hash, Key, KeyType, Scheme

POSSESSION, EXPORT = "possession", "non-exportability"
_NONCE_SIZE = 32
_CONTEXT = b"spire keys verify: no certificate, no token\0"
"""What the key signs can be taken for nothing else."""


async def possession(key: Key, public_key: bytes) -> Check:
    """Whether the key signs for `public_key` (DER). Raises the errors of keystores.errors for one that cannot be asked.

    A signature that is wrong is a check that failed.
    """
    scheme = Scheme(Hash.SHA384 if key.key_type is KeyType.EC_P384 else Hash.SHA256)
    nonce = secrets.token_bytes(_NONCE_SIZE)
    digest = hashlib.new(scheme.hash.value, _CONTEXT + nonce).digest()
    try:
        signature = await key.sign(digest, scheme)
        public_keys.verify(public_keys.from_der(public_key), [digest], [signature], scheme)
    except PermanentlyUnusable as error:
        return Check(POSSESSION, passed=False, found=str(error))
    found = f"it signed the fresh challenge {nonce.hex()}, and its public key verifies that"
    return Check(POSSESSION, passed=True, found=found)


def exportable(where: str) -> Check:
    """Of a key that software holds."""
    return Check(EXPORT, passed=False, found=f"the private key is {where}: whoever reads that has the key")


def unknown(name: str) -> Check:
    """Of a key manager that tells nothing."""
    return Check(EXPORT, passed=False, found=f"not known: key manager {name!r} does not say what can leave it")
