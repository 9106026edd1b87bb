"""A key that signs as a root or an intermediate of the PKI: it was made in a ceremony, and has a label or a handle.

A server's own keys come and go under a KeyManager; this one is only found and used.
"""

from __future__ import annotations

from typing import Protocol


class RootKey(Protocol):
    """EC P-256 or P-384, RSA of 2048, 3072 or 4096 bits, or Ed25519; the private half stays in its device."""

    @property
    def name(self) -> str:
        """How the configuration names it, for messages."""
        ...

    @property
    def public_key(self) -> bytes:
        """The DER SubjectPublicKeyInfo."""
        ...

    async def sign(self, message: bytes) -> bytes:
        """Sign a message (not a digest): ECDSA with SHA-256 or SHA-384 by the curve, as DER; RSA by PKCS #1 v1.5 with
        SHA-256; Ed25519 (RFC 8032).

        The signature was verified. Raises keystores.errors as `plugins.keymanager.Key.sign_batch` does.
        """
        ...

    async def close(self) -> None:
        """Give back sessions and contexts. Further signatures raise TemporarilyUnavailable."""
        ...
