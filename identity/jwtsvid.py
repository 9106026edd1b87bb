"""JWT-SVIDs: verification as the JWT-SVID standard has it (sections 2 to 5).

PyJWT checks encoding, `crit` and the signature. The claims are checked here, because PyJWT reads the wall clock and
verification is to be pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, TypeVar

import msgspec
from jwt.api_jws import PyJWS
from jwt.exceptions import PyJWTError
from jwt.types import SigOptions

from identity import der
from identity.bundles import JwtAuthority
from identity.jws import ALGORITHMS, algorithms_of
from identity.spiffeid import SpiffeId, TrustDomain
from operations import documents
from operations.errors import InvalidArgument, Refused

# How far clocks may be apart, in seconds: the grace that SPIRE and go-spiffe give as well.
LEEWAY = 60

# A token travels in a header; nothing that accepts one takes longer headers.
_MAX_TOKEN = 64 * 1024

_jws = PyJWS(algorithms=sorted(ALGORITHMS), options={"enforce_minimum_key_length": True})
_UNVERIFIED: SigOptions = {"verify_signature": False}


_T = TypeVar("_T")

# Seconds until the end of the year 9999; NumericDate may have a fraction (RFC 7519, 2).
_Date = Annotated[float, msgspec.Meta(ge=0, le=253402300799)]


class _Claims(msgspec.Struct):
    """The registered claims by their types (RFC 7519, 4.1)."""

    sub: str = ""
    aud: str | tuple[str, ...] = ()
    exp: _Date | None = None
    iat: _Date | None = None
    nbf: _Date | None = None


@dataclass(frozen=True, slots=True)
class JwtSvid:
    """A verified token. Times are unix seconds; `issued_at` is 0 when the token does not say. `claims` is all of it."""

    id: SpiffeId
    audience: tuple[str, ...]
    expires_at: int
    issued_at: int
    claims: Mapping[str, Any]


def verify(
    token: str,
    authorities: Mapping[TrustDomain, Sequence[JwtAuthority]],
    audience: str | Sequence[str],
    now: datetime,
) -> JwtSvid:
    """Verify a token's signature, times and audience against the authorities of its subject's trust domain.

    The token is meant for one of `audience`. Raises InvalidArgument for what is not a JWT-SVID, Refused for one that
    does not verify.
    """
    wanted = (audience,) if isinstance(audience, str) else tuple(audience)
    header, payload = _parse(token)
    key_id = _check_header(header)
    claims = _decode(payload, _Claims)
    spiffe_id = _subject(claims)
    key = _find_key(spiffe_id.trust_domain, key_id, authorities)
    try:
        _jws.decode_complete(token, key, algorithms=algorithms_of(key))
    except PyJWTError as error:
        raise Refused("token signature does not verify with its authority's key") from error
    _check_claims(claims, wanted, now.timestamp())
    return _svid(spiffe_id, claims, payload)


def read_unverified(token: str) -> JwtSvid:
    """What a token says of itself, nothing verified; for a cache of one's own tokens. Raises InvalidArgument."""
    _, payload = _parse(token)
    claims = _decode(payload, _Claims)
    return _svid(_subject(claims), claims, payload)


def _parse(token: str) -> tuple[Mapping[str, Any], bytes]:
    """The header and payload of a compact JWS. Raises InvalidArgument."""
    if len(token) > _MAX_TOKEN:
        raise InvalidArgument(f"unable to parse JWT token: longer than {_MAX_TOKEN} characters")
    try:
        parts = _jws.decode_complete(token, options=_UNVERIFIED)
    except (PyJWTError, UnicodeEncodeError, RecursionError) as error:
        raise InvalidArgument("unable to parse JWT token") from error
    return parts["header"], parts["payload"]


def _check_header(header: Mapping[str, Any]) -> str:
    """JWT-SVID 2: the header's algorithm and type; returns its key id."""
    if header.get("alg") not in ALGORITHMS:
        raise InvalidArgument("unable to parse JWT token: unexpected signature algorithm")
    if header.get("typ", "JWT") not in ("JWT", "JOSE"):
        raise InvalidArgument("token header type not equal to either JWT or JOSE")
    key_id = header.get("kid")
    if not isinstance(key_id, str) or not key_id:
        raise InvalidArgument("token header missing key id")
    return key_id


def _subject(claims: _Claims) -> SpiffeId:
    if not claims.sub:
        raise InvalidArgument("token missing subject claim")
    if claims.exp is None:
        raise InvalidArgument("token missing exp claim")
    try:
        return SpiffeId.parse(claims.sub)
    except InvalidArgument as error:
        raise InvalidArgument(f"token has an invalid subject claim: {error}") from error


def _find_key(
    trust_domain: TrustDomain, key_id: str, authorities: Mapping[TrustDomain, Sequence[JwtAuthority]]
) -> der.PublicKey:
    known = authorities.get(trust_domain)
    if known is None:
        raise Refused(f'no keys found for trust domain "{trust_domain}"')
    for authority in known:
        if authority.key_id == key_id:
            return der.public_key(authority.public_key)
    raise Refused(f'public key "{key_id[:128]}" not found in trust domain "{trust_domain}"')


def _check_claims(claims: _Claims, wanted: Sequence[str], now: float) -> None:
    if claims.exp is None or now > claims.exp + LEEWAY:
        raise Refused("token has expired")
    if claims.nbf is not None and now < claims.nbf - LEEWAY:
        raise Refused("token not valid yet (nbf)")
    if claims.iat is not None and now < claims.iat - LEEWAY:
        raise Refused("token issued in the future (iat)")
    audience = _audience(claims)
    if not set(wanted) & set(audience):
        raise Refused(f"expected audience in {_quoted(wanted)} (audience={_quoted(audience)})")


def _audience(claims: _Claims) -> tuple[str, ...]:
    return (claims.aud,) if isinstance(claims.aud, str) else claims.aud


def _quoted(values: Sequence[str]) -> str:
    """A list of strings as Go prints it, which is what users of SPIRE have seen here."""
    return "[" + " ".join(f'"{value}"' for value in values) + "]"


def _svid(spiffe_id: SpiffeId, claims: _Claims, payload: bytes) -> JwtSvid:
    return JwtSvid(
        id=spiffe_id,
        audience=_audience(claims),
        expires_at=int(claims.exp or 0),
        issued_at=int(claims.iat or 0),
        claims=_decode(payload, dict[str, Any]),
    )


def _decode(payload: bytes, kind: type[_T]) -> _T:
    try:
        return documents.decode(payload, kind)
    except documents.Malformed as error:
        raise InvalidArgument(f"unable to get claims from token: {error}") from error
