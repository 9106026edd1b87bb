"""Keys of this process, made and used with `cryptography`: what memory and disk have in common."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from keystores import proving, public_keys
from keystores.errors import InvalidArgument, NotFound, Refused, TemporarilyUnavailable, Unsupported
from plugins.keyinventory import KeyRecord, Proof
from plugins.keymanager import Key, KeyType, Scheme

INLINE_SIGNATURES = 4
"""EC batches up to this size are signed on the loop: a thread's hop costs more than they do."""

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class SoftwareKey:
    """An `InProcessKey`. Times are Unix seconds, None for what is not known or has not been."""

    def __init__(self, key_id: str, private_key: PrivateKey, created_at: int | None = None) -> None:
        self.id = key_id
        self.key_type = public_keys.key_type_of(private_key)
        self.public_key = public_keys.to_der(private_key.public_key())
        self.created_at = created_at
        self.last_signature_at: int | None = None
        self._private_key = private_key

    @property
    def private_key(self) -> bytes:
        return self._private_key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    async def sign(self, digest: bytes, scheme: Scheme) -> bytes:
        [signature] = await self.sign_batch([digest], scheme)
        return signature

    async def sign_batch(self, digests: Sequence[bytes], scheme: Scheme) -> list[bytes]:
        public_keys.check_digests(digests, scheme)
        if isinstance(self._private_key, ec.EllipticCurvePrivateKey) and len(digests) <= INLINE_SIGNATURES:
            signatures = self._sign(digests, scheme)
        else:
            signatures = await asyncio.to_thread(self._sign, digests, scheme)
        if signatures:
            self.last_signature_at = int(time.time())
        return signatures

    def _sign(self, digests: Sequence[bytes], scheme: Scheme) -> list[bytes]:
        key = self._private_key
        if isinstance(key, ec.EllipticCurvePrivateKey):
            signing = public_keys.ecdsa(scheme)
            return [key.sign(digest, signing) for digest in digests]
        pad, algorithm = public_keys.rsa_padding(scheme), public_keys.prehashed(scheme)
        return [key.sign(digest, pad, algorithm) for digest in digests]


def _generate(key_id: str, key_type: KeyType) -> SoftwareKey:
    private_key: PrivateKey
    if key_type in public_keys.CURVES:
        private_key = ec.generate_private_key(public_keys.CURVES[key_type]())
    else:
        private_key = rsa.generate_private_key(65537, public_keys.MODULUS_BITS[key_type])
    return SoftwareKey(key_id, private_key, int(time.time()))


async def generate(key_id: str, key_type: KeyType) -> SoftwareKey:
    if not key_id:
        raise InvalidArgument("a key needs an id")
    return await asyncio.to_thread(_generate, key_id, key_type)


def load(key_id: str, pkcs8: bytes) -> SoftwareKey:
    """The key of a DER PKCS #8 structure. Raises InvalidArgument or Unsupported."""
    try:
        private_key = serialization.load_der_private_key(pkcs8, None)
    except (ValueError, TypeError) as error:
        raise InvalidArgument(f"key {key_id!r} is no unencrypted DER PKCS #8") from error
    if not isinstance(private_key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise Unsupported(f"key {key_id!r} is neither EC nor RSA")
    return SoftwareKey(key_id, private_key)


def derived(root: bytes, label: str) -> bytes:
    """32 bytes for the label, from which neither the root nor another label's can be found (RFC 5869)."""
    return HKDF(hashes.SHA256(), 32, salt=None, info=label.encode()).derive(root)


class KeyRing:
    """The keys of a software key manager by id, until it is closed."""

    def __init__(self, keys: dict[str, SoftwareKey]) -> None:
        self._keys: dict[str, SoftwareKey] | None = keys

    @property
    def keys(self) -> dict[str, SoftwareKey]:
        if self._keys is None:
            raise TemporarilyUnavailable("the key manager is closed")
        return self._keys

    def listed(self) -> Sequence[Key]:
        return tuple(self.keys.values())

    def records(self, token: str) -> Sequence[KeyRecord]:
        """As an inventory has them; `token` is where they are."""
        return [_record(key, token) for key in self.keys.values()]

    async def proof(self, key_id: str, token: str, where: str) -> Proof:
        """`where` the private keys are, in words. Raises NotFound."""
        key = self.named(key_id)
        possession = await proving.possession(key, key.public_key)
        return Proof(_record(key, token), (possession, proving.exportable(where)))

    def named(self, key_id: str) -> SoftwareKey:
        """Raises NotFound."""
        try:
            return self.keys[key_id]
        except KeyError:
            raise NotFound(f"no key has the id {key_id!r}") from None

    def refuse_disposal(self, handle: str) -> None:
        """A key that gives way to another is gone at once, so those that are there have their names."""
        raise Refused(f"key {self.named(handle).id!r} has its name still, and is kept")

    def close(self) -> None:
        self._keys = None


def _record(key: SoftwareKey, token: str) -> KeyRecord:
    return KeyRecord(
        handle=key.id,
        id=key.id,
        key_type=key.key_type,
        public_key=key.public_key,
        label=key.id,
        token=token,
        created_at=key.created_at,
        last_signature_at=key.last_signature_at,
    )
