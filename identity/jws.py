"""The signature algorithms of SPIFFE's tokens (JWT-SVID 2.1): these and no others, and which of them a key has."""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.hazmat.primitives.asymmetric import rsa

from identity import der

_RSA_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_EC_ALGORITHMS = {"secp256r1": ("ES256",), "secp384r1": ("ES384",), "secp521r1": ("ES512",)}

ALGORITHMS = frozenset((*_RSA_ALGORITHMS, "ES256", "ES384", "ES512"))


def algorithms_of(key: der.PublicKey) -> Sequence[str]:
    """By their names in RFC 7518, section 3; none for a curve that SPIFFE does not know."""
    if isinstance(key, rsa.RSAPublicKey):
        return _RSA_ALGORITHMS
    return _EC_ALGORITHMS.get(key.curve.name, ())
