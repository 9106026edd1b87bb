"""An X509-SVID and the key it belongs to, as TLS wants them: in this process or elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from plugins.keymanager import Hash, InProcessKey, Key, Scheme
from transport.tls import ExternalIdentity, InProcessIdentity


def client_identity(chain: Sequence[bytes], key: Key) -> InProcessIdentity | ExternalIdentity:
    """For transport.tls.client_context: the chain, DER, leaf first, with whatever its key manager gives of the key."""
    if isinstance(key, InProcessKey):
        return InProcessIdentity(tuple(chain), key.private_key)

    async def sign(digest: bytes, hash_name: str, pss: bool) -> bytes:
        return await key.sign(digest, Scheme(Hash(hash_name), pss))

    return ExternalIdentity(tuple(chain), key.public_key, sign)
