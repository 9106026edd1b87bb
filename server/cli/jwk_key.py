"""Keys for tokens: a new one, and how it is handed over (RFC 7517)."""

from __future__ import annotations

import json
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from identity import der, jwks

_CURVES: dict[str, ec.EllipticCurve] = {"ec-p256": ec.SECP256R1(), "ec-p384": ec.SECP384R1()}
_RSA_BITS = {"rsa-2048": 2048, "rsa-4096": 4096}


@dataclass(frozen=True, slots=True, repr=False)
class NewKey:
    """`public_key` is a DER SubjectPublicKeyInfo, `private_jwk` a JWK with the private members."""

    public_key: bytes
    private_jwk: str


def generate(key_type: str) -> NewKey:
    """A key of one of SPIRE's key types, such as ec-p256."""
    private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    if key_type in _CURVES:
        private = ec.generate_private_key(_CURVES[key_type])
    else:
        private = rsa.generate_private_key(65537, _RSA_BITS[key_type])
    public = private.public_key()
    jwk = {**jwks.jwk(public), **_private_members(private)}
    return NewKey(der.subject_public_key_info(public), json.dumps(jwk, separators=(",", ":")))


def _private_members(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> dict[str, str]:
    """RFC 7518, 6.2.2 and 6.3.2."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return {"d": jwks.base64url(key.private_numbers().private_value, (key.curve.key_size + 7) // 8)}
    numbers = key.private_numbers()
    names = {"d": "d", "p": "p", "q": "q", "dp": "dmp1", "dq": "dmq1", "qi": "iqmp"}
    return {name: jwks.base64url(getattr(numbers, member)) for name, member in names.items()}
