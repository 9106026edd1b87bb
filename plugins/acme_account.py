"""The key of an ACME account in a key manager, under the id that SPIRE gives it."""

from __future__ import annotations

from operations.errors import NotFound
from plugins.keymanager import Hash, Key, KeyManager, KeyType, Scheme
from transport.acme.jose import AccountKey

_NAME = "acme_account+key"


class AcmeAccount:
    """Called, it gives the account's key, for transport.acme. `prefix` begins the key's id, `bundle-acme-` say."""

    def __init__(self, keys: KeyManager, prefix: str) -> None:
        self._keys = keys
        self.key_id = prefix + _NAME
        self.key: Key | None = None
        """The key, once it has been looked for."""

    async def __call__(self) -> AccountKey:
        """Raises what the key manager raises."""
        try:
            key = await self._keys.get(self.key_id)
        except NotFound:
            key = await self._keys.generate(self.key_id, KeyType.EC_P256)
        self.key = key

        async def sign(digest: bytes, hash_name: str, pss: bool) -> bytes:
            return await key.sign(digest, Scheme(Hash(hash_name), pss))

        return AccountKey(key.public_key, sign)
