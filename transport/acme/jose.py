"""JSON Web Signatures as ACME wants them (RFC 8555, 6.2), by an account's key that may be in a token."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.serialization import load_der_public_key

from operations.errors import Refused
from transport.tls import Sign

_COORDINATE = 32  # bytes, of P-256


@dataclass(frozen=True, slots=True)
class AccountKey:
    """A P-256 key, wherever its private half is. `public_key` is its DER SubjectPublicKeyInfo."""

    public_key: bytes
    sign: Sign = field(repr=False)


AccountKeys = Callable[[], Awaitable[AccountKey]]
"""The account's key; one is made where there is none. Raises what its key manager raises."""


class Signer:
    """Signs an account's requests with ES256. Raises Refused for a key of another kind."""

    def __init__(self, key: AccountKey) -> None:
        public = load_der_public_key(key.public_key)
        if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
            raise Refused("the ACME account's key is not of type ec-p256: remove it, and another one is made")
        numbers = public.public_numbers()
        x, y = (base64url(each.to_bytes(_COORDINATE, "big")) for each in (numbers.x, numbers.y))
        self.jwk: Mapping[str, str] = {"crv": "P-256", "kty": "EC", "x": x, "y": y}
        self._key = key

    @property
    def thumbprint(self) -> str:
        """RFC 7638; the members are in its order."""
        return base64url(hashlib.sha256(msgspec.json.encode(self.jwk)).digest())

    async def sign(self, protected: Mapping[str, object], payload: object | None) -> bytes:
        """The flattened JSON serialization (RFC 7515, 7.2.2); None is the empty payload of POST-as-GET."""
        head = base64url(msgspec.json.encode({"alg": "ES256", **protected}))
        body = "" if payload is None else base64url(msgspec.json.encode(payload))
        digest = hashlib.sha256(f"{head}.{body}".encode()).digest()
        r, s = utils.decode_dss_signature(await self._key.sign(digest, "sha256", False))
        signature = base64url(r.to_bytes(_COORDINATE, "big") + s.to_bytes(_COORDINATE, "big"))
        return msgspec.json.encode({"protected": head, "payload": body, "signature": signature})


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
