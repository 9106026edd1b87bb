"""JWT-SVIDs and WIT-SVIDs as compact JWS (RFC 7515), by keys that sign digests.

A small encoder of our own, because what is signed here is made here; tokens from outside are identity.jwtsvid's and
PyJWT's.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric import utils

from operations.errors import Refused
from plugins.keymanager import Key, KeyType
from server.ca import signing
from server.ca.checks import JwtRequest, WitRequest

# RFC 7518, 3.1; the hashes are those of signing.SCHEMES.
_ALGORITHMS = {
    KeyType.EC_P256: "ES256",
    KeyType.EC_P384: "ES384",
    KeyType.RSA_2048: "RS256",
    KeyType.RSA_4096: "RS256",
}
_COORDINATE = {KeyType.EC_P256: 32, KeyType.EC_P384: 48}


class TokenEncoder:
    """Tokens of one authority: its key, and the key id by which bundles know it."""

    __slots__ = ("_header", "_issuer", "_key")

    def __init__(self, key: Key, key_id: str, issuer: str, header_type: str) -> None:
        header = {"alg": _ALGORITHMS[key.key_type], "kid": key_id, "typ": header_type}
        self._header = _base64url(msgspec.json.encode(header))
        self._issuer = issuer
        self._key = key

    async def encode(self, claims: Mapping[str, Any]) -> str:
        """A signed token of JSON values. Raises what the key raises, and Refused for claims that are none."""
        signed = self._to_be_signed(claims)
        scheme = signing.SCHEMES[self._key.key_type]
        return self._token(signed, await self._key.sign(signing.digest(signed, scheme), scheme))

    async def encode_batch(self, batch: Sequence[Mapping[str, Any]]) -> list[str]:
        """The tokens in order, with one hop to the key. Raises as `encode` does, and then none is signed."""
        signed = [self._to_be_signed(claims) for claims in batch]
        scheme = signing.SCHEMES[self._key.key_type]
        signatures = await self._key.sign_batch([signing.digest(each, scheme) for each in signed], scheme)
        return [self._token(*each) for each in zip(signed, signatures, strict=True)]

    def wit_claims(self, request: WitRequest, issued_at: int, expires_at: int) -> dict[str, Any]:
        """What a WIT-SVID says (draft-ietf-wimse-workload-creds, Workload Identity Token); times are unix seconds."""
        claims: dict[str, Any] = {
            "cnf": {"jwk": request.jwk},
            "exp": expires_at,
            "iat": issued_at,
            "sub": str(request.spiffe_id),
        }
        if self._issuer:
            claims["iss"] = self._issuer
        return claims

    def claims(self, request: JwtRequest, issued_at: int, expires_at: int) -> dict[str, Any]:
        """What a JWT-SVID says (JWT-SVID 3); times are unix seconds."""
        claims: dict[str, Any] = {
            "aud": request.audience,
            "exp": expires_at,
            "iat": issued_at,
            "sub": str(request.spiffe_id),
        }
        if self._issuer:
            claims["iss"] = self._issuer
        if request.include_jti:
            claims["jti"] = _base64url(uuid.uuid4().bytes).decode()
        return claims

    def _to_be_signed(self, claims: Mapping[str, Any]) -> bytes:
        try:
            payload = msgspec.json.encode(claims, order="sorted")
        except (TypeError, ValueError, msgspec.MsgspecError) as error:
            raise Refused(f"the claims of a JWT-SVID are no JSON: {error}") from error
        return self._header + b"." + _base64url(payload)

    def _token(self, signed: bytes, signature: bytes) -> str:
        return (signed + b"." + _base64url(self._raw(signature))).decode()

    def _raw(self, signature: bytes) -> bytes:
        """RFC 7518, 3.4: ECDSA signatures are r and s in full length; RSA's stay as they are."""
        length = _COORDINATE.get(self._key.key_type)
        if length is None:
            return signature
        r, s = utils.decode_dss_signature(signature)
        return r.to_bytes(length, "big") + s.to_bytes(length, "big")


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
