"""Whether a token holds (RFC 7519, 7.2; OpenID Connect Core 1.0, 3.1.3.7). Pure: keys and time are given.

PyJWT checks encoding, `crit` and the signature; the claims are checked here, since PyJWT reads the wall clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from jwt.api_jws import PyJWS
from jwt.exceptions import PyJWTError

from attestors.oidc.claims import Claims
from attestors.oidc.configuration import Issuer
from attestors.oidc.jwks import KeySet
from operations import documents
from operations.errors import InvalidArgument, Refused
from operations.quoting import quote

LEEWAY = 60
"""Seconds that clocks may be apart."""
LONGEST = 64 << 10
"""Characters of a token."""

_jws = PyJWS(algorithms=["RS256", "ES256", "EdDSA"], options={"enforce_minimum_key_length": True})

# Seconds until the end of the year 9999; NumericDate may have a fraction (RFC 7519, 2).
_Date = Annotated[float, msgspec.Meta(ge=0, le=253402300799)]


class _Registered(msgspec.Struct, frozen=True):
    iss: str = ""
    sub: str = ""
    aud: str | tuple[str, ...] = ()
    exp: _Date | None = None
    nbf: _Date | None = None
    iat: _Date | None = None

    @property
    def audiences(self) -> tuple[str, ...]:
        return (self.aud,) if isinstance(self.aud, str) else self.aud


@dataclass(frozen=True, slots=True)
class Token:
    """What a token says of itself. Nothing of it is verified."""

    text: str
    issuer: str
    algorithm: str
    key_id: str | None


@dataclass(frozen=True, slots=True)
class Verified:
    """`claims` is all that the token says."""

    issuer: str
    subject: str
    audiences: tuple[str, ...]
    claims: Claims


def read(text: str) -> Token:
    """Raises InvalidArgument for what is no token."""
    if len(text) > LONGEST:
        raise InvalidArgument(f"the token is longer than {LONGEST} characters")
    try:
        parts = _jws.decode_complete(text, options={"verify_signature": False})
    except (PyJWTError, UnicodeError, RecursionError) as error:
        raise InvalidArgument("it is no JWT in compact form") from error
    header: Mapping[str, Any] = parts["header"]
    algorithm, key_id = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or not (key_id is None or isinstance(key_id, str)):
        raise InvalidArgument("its header cannot be understood")
    return Token(text, documents.decode(parts["payload"], _Registered).iss, algorithm, key_id)


def verify(token: Token, issuer: Issuer, keys: KeySet, now: float) -> Verified:
    """`now` is in unix seconds. Raises Refused; UnknownKey where newer keys may help."""
    if token.algorithm not in issuer.algorithms:
        allowed = ", ".join(issuer.algorithms)
        raise Refused(f"the token is signed with {quote(token.algorithm[:20])}; of its issuer {allowed} are taken")
    key = keys.find(token.key_id, token.algorithm)
    try:
        parts = _jws.decode_complete(token.text, key.public, algorithms=[token.algorithm])
    except (PyJWTError, ValueError, TypeError) as error:
        raise Refused("the token's signature does not verify with its issuer's key") from error
    registered = documents.decode(parts["payload"], _Registered)
    if registered.iss != token.issuer:
        raise Refused("the token is another than the one that was read")
    _require_current(registered, now)
    if not set(registered.audiences) & set(issuer.audiences):
        raise Refused(
            f"the token is for {quote(', '.join(registered.audiences)[:200])}, and for none of the configured audiences"
        )
    if not registered.sub:
        raise Refused("the token has no subject")
    claims = documents.decode(parts["payload"], dict[str, object])
    return Verified(registered.iss, registered.sub, registered.audiences, claims)


def _require_current(registered: _Registered, now: float) -> None:
    if registered.exp is None:
        raise Refused("the token does not say when it expires")
    if now >= registered.exp + LEEWAY:
        raise Refused(f"the token has expired {now - registered.exp:.0f} s ago")
    if registered.nbf is not None and now < registered.nbf - LEEWAY:
        raise Refused(f"the token is not valid for another {registered.nbf - now:.0f} s")
    if registered.iat is not None and now < registered.iat - LEEWAY:
        raise Refused("the token was issued in the future: check the clocks")
