"""An issuer's keys (RFC 7517, 5): those that sign by an algorithm that is known here, and no others. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt import PyJWK
from jwt.exceptions import PyJWTError

from operations import documents
from operations.errors import InvalidArgument, Refused

LARGEST = 512 << 10
"""Bytes of a document."""
MOST_KEYS = 100

_SHORTEST_RSA = 2048
_LONGEST_RSA = 8192
_LONGEST_NUMBER = 2048
_ALGORITHMS: Mapping[str, str] = {"RSA": "RS256", "EC P-256": "ES256", "OKP Ed25519": "EdDSA"}
"""By type and curve."""

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


class UnknownKey(Refused):
    """The token is signed by a key that the issuer did not have when it was asked."""


class _Document(msgspec.Struct, frozen=True):
    keys: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Key:
    id: str
    algorithm: str
    public: PublicKey


@dataclass(frozen=True, slots=True)
class KeySet:
    keys: Sequence[Key]

    def find(self, key_id: str | None, algorithm: str) -> Key:
        """The one key of that id, or the only one where a token names none. Raises UnknownKey."""
        found = [key for key in self.keys if key.algorithm == algorithm and key_id in (None, key.id)]
        if len(found) != 1:
            what = "without a key's id" if key_id is None else f"by key {key_id[:100]}"
            raise UnknownKey(f"the issuer has {len(found)} keys for a token that is signed with {algorithm} {what}")
        return found[0]


def parse(document: bytes) -> KeySet:
    """Raises InvalidArgument. Keys for other uses, and of kinds that are not known, are passed over."""
    if len(document) > LARGEST:
        raise InvalidArgument(f"the keys' document is larger than {LARGEST} bytes")
    jwks = documents.decode(document, _Document).keys
    if len(jwks) > MOST_KEYS:
        raise InvalidArgument(f"there are {len(jwks)} keys; at most {MOST_KEYS} are taken")
    return KeySet([key for each in jwks if (key := _key(each)) is not None])


def _key(jwk: Mapping[str, Any]) -> Key | None:
    kind = str(jwk.get("kty"))
    algorithm = _ALGORITHMS.get(kind if kind == "RSA" else f"{kind} {jwk.get('crv')}")
    if algorithm is None or jwk.get("alg", algorithm) != algorithm or jwk.get("use", "sig") != "sig":
        return None
    operations = jwk.get("key_ops", ["verify"])
    key_id = jwk.get("kid", "")
    if not isinstance(operations, list) or "verify" not in operations or not isinstance(key_id, str):
        return None
    # Only what makes the public half: a set with private ones is another's mistake.
    public = {name: jwk[name] for name in ("kty", "crv", "n", "e", "x", "y") if name in jwk}
    if any(len(str(value)) > _LONGEST_NUMBER for value in public.values()):
        return None
    try:
        key = PyJWK(public, algorithm).key
    except (PyJWTError, ValueError, TypeError, UnsupportedAlgorithm):
        return None
    return Key(key_id, algorithm, key) if _is_good(key) else None


def _is_good(key: object) -> bool:
    if isinstance(key, rsa.RSAPublicKey):
        return _SHORTEST_RSA <= key.key_size <= _LONGEST_RSA
    return isinstance(key, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey)
