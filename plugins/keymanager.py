"""The key store boundary, shared by server and agent: generate, get, list, close.

The shape follows spire.plugin.{server,agent}.keymanager.v1: a key manager holds named key pairs, hands out public
keys and signatures, and never a private key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, runtime_checkable


class KeyType(Enum):
    """Key types by their names in configuration files."""

    EC_P256 = "ec-p256"
    EC_P384 = "ec-p384"
    RSA_2048 = "rsa-2048"
    RSA_4096 = "rsa-4096"


class Hash(Enum):
    """Digest algorithms by their `hashlib` names."""

    SHA256 = "sha256"
    SHA384 = "sha384"
    SHA512 = "sha512"


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a digest is signed.

    ECDSA keys need only the hash. RSA keys use PKCS #1 v1.5 (RFC 8017, 8.2), or PSS (8.1) with a salt as long as the
    hash when `pss` is set.
    """

    hash: Hash
    pss: bool = False


class Key(Protocol):
    """A key pair whose private half stays where it is."""

    @property
    def id(self) -> str:
        """The name it was generated under, for example `x509-CA-A`."""
        ...

    @property
    def key_type(self) -> KeyType: ...

    @property
    def public_key(self) -> bytes:
        """The DER SubjectPublicKeyInfo (RFC 5280, 4.1)."""
        ...

    async def sign(self, digest: bytes, scheme: Scheme) -> bytes:
        """Sign one digest; see `sign_batch`."""
        ...

    async def sign_batch(self, digests: Sequence[bytes], scheme: Scheme) -> list[bytes]:
        """Sign digests made with `scheme.hash`, in order, with one hop to the key's worker.

        Returns DER Ecdsa-Sig-Value (RFC 3279, 2.2.3) or raw RSA signatures. A device's signatures are verified
        before they are returned. Raises keystores.errors: TemporarilyUnavailable while the device is away,
        PermanentlyUnusable when it returned a wrong signature or lost the key, InvalidArgument for a digest of the
        wrong length. All or nothing: no part of a batch is returned.
        """
        ...


@runtime_checkable
class InProcessKey(Key, Protocol):
    """A key whose private half lives in this process (memory, disk), so that a TLS library can be given it."""

    @property
    def private_key(self) -> bytes:
        """The DER PKCS #8 PrivateKeyInfo (RFC 5958), unencrypted."""
        ...


class KeyManager(Protocol):
    """A set of named keys. Ids are unique in a key manager; at most 8 keys for a server, 4 for an agent."""

    async def generate(self, key_id: str, key_type: KeyType) -> Key:
        """Make a key pair and let `key_id` name it from now on.

        A key that had the id before is replaced in the mapping, durably, after the new one exists; it is never
        overwritten in place. Raises Unsupported for a key type that the device lacks.
        """
        ...

    async def get(self, key_id: str) -> Key:
        """The key that `key_id` names. Raises NotFound."""
        ...

    async def list(self) -> Sequence[Key]: ...

    async def close(self) -> None:
        """Give back sessions, workers and memory. Keys stay. Further calls raise TemporarilyUnavailable."""
        ...


@runtime_checkable
class Sealing(Protocol):
    """A further power: secrets that only this key manager gives, to encrypt what is kept outside of it.

    Signatures cannot stand in for it, since those of ECDSA differ each time. Who lacks it has nothing kept.
    """

    async def sealing_secret(self, label: str) -> bytes:
        """32 bytes that belong to the label: the same ones from now on, also after a restart.

        Secrets of two labels, or of two key managers, have nothing to do with each other. The first use may make what
        the secret comes from, durably. Raises TemporarilyUnavailable while the device is away, and PermanentlyUnusable
        when the secret cannot be had or made.
        """
        ...
