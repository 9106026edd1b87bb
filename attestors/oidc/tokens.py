"""Tokens: verified against their issuer's keys, and read for selectors. Pure.

PyJWT checks encoding, signature, issuer and audience (RFC 7515, RFC 7519); times are checked here, because it reads
the wall clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from jwt import PyJWT
from jwt.exceptions import (
    InvalidAudienceError,
    InvalidIssuerError,
    InvalidSignatureError,
    MissingRequiredClaimError,
    PyJWTError,
)

from attestors.oidc.configuration import ALGORITHMS, Issuer
from attestors.oidc.keys import SigningKey
from operations.errors import InvalidArgument, Refused
from operations.quoting import quote

LEEWAY: Final = 60
"""Seconds by which clocks may differ, as for JWT-SVIDs."""
LARGEST_TOKEN: Final = 64 << 10
MOST_VALUES: Final = 256
LARGEST_VALUE: Final = 1024
"""Characters of a selector's value."""

_LAST_DATE: Final = 253402300799
"""The end of the year 9999, in unix seconds."""

_jwt = PyJWT()


@dataclass(frozen=True, slots=True)
class Unverified:
    """What a token says of itself, to find out whose keys to ask for."""

    issuer: str
    algorithm: str
    key_id: str | None


def look(token: str) -> Unverified:
    """Raises InvalidArgument for what is no token, and Refused for an algorithm that is none of ours (`none`)."""
    if len(token) > LARGEST_TOKEN:
        raise InvalidArgument(f"the token is longer than {LARGEST_TOKEN} characters")
    try:
        parts = _jwt.decode_complete(token, options={"verify_signature": False})
    except (PyJWTError, UnicodeError, RecursionError, ValueError, TypeError) as error:
        raise InvalidArgument("what the process has there is no JWT") from error
    header, claims = parts["header"], parts["payload"]
    algorithm, key_id, issuer = header.get("alg"), header.get("kid"), claims.get("iss")
    if algorithm not in ALGORITHMS:
        raise Refused(f"the token's algorithm is {quote(str(algorithm))}: {', '.join(ALGORITHMS)} are taken")
    if not isinstance(issuer, str) or not isinstance(key_id, str | None):
        raise InvalidArgument("the token names no issuer, or its key by something else than a text")
    return Unverified(issuer, algorithm, key_id)


def verify(token: str, name: str, issuer: Issuer, keys: Sequence[SigningKey], now: float) -> Mapping[str, Any]:
    """The claims of a token of the issuer `name`, at `now` in unix seconds. Raises Refused."""
    algorithm = look(token).algorithm
    if algorithm not in issuer.algorithms:
        raise Refused(f"issuer {name} is not set to sign by {algorithm}: add it to algorithms if it does")
    usable = [key for key in keys if key.algorithm == algorithm]
    claims = next((found for key in usable if (found := _claims(token, name, issuer, key)) is not None), None)
    if claims is None:
        raise Refused(f"the token's signature is by none of the keys of issuer {name}")
    _require_current(claims, now)
    if not isinstance(claims.get("sub"), str) or not claims["sub"]:
        raise Refused("the token has no subject")
    return claims


def _claims(token: str, name: str, issuer: Issuer, key: SigningKey) -> dict[str, Any] | None:
    """None where another key signed it. Raises Refused for a token that the key did sign, but for others."""
    try:
        return _jwt.decode(
            token,
            key.key,
            algorithms=[key.algorithm],
            audience=list(issuer.audiences),
            issuer=name,
            options={
                "require": ["exp", "iss", "sub", "aud"],
                "verify_exp": False,
                "verify_nbf": False,
                "verify_iat": False,
            },
        )
    except InvalidSignatureError:
        return None
    except InvalidAudienceError as error:
        raise Refused(
            f"the token is for none of the audiences of issuer {name}: {', '.join(issuer.audiences)}"
        ) from error
    except InvalidIssuerError as error:
        raise Refused(f"the token is not of issuer {name}") from error
    except MissingRequiredClaimError as error:
        raise Refused(f"the token has no claim {quote(error.claim)}") from error
    except PyJWTError as error:
        raise Refused("the token's claims cannot be understood") from error


def _require_current(claims: Mapping[str, Any], now: float) -> None:
    expires, begins, issued = (_date(claims, name) for name in ("exp", "nbf", "iat"))
    if expires is None or now >= expires + LEEWAY:
        raise Refused("the token has expired: the process has not been given a new one")
    if any(each is not None and now < each - LEEWAY for each in (begins, issued)):
        raise Refused("the token is not valid yet: compare the clocks of its issuer and of this machine")


def _date(claims: Mapping[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    # A bool is an int to Python, and NaN is neither before nor after anything.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LAST_DATE:
        raise Refused(f"the token's {name} is no date")
    return float(value)


def selector_values(claims: Mapping[str, Any], issuer: Issuer) -> list[str]:
    """`iss`, `sub`, each `aud`, and the values of the claims that are set. Raises Refused for more than are kept."""
    values = [f"{name}:{each}" for name in ("iss", "sub", "aud") for each in texts(claims, name)]
    values += [f"claim:{path}:{value}" for path in issuer.claims for value in dict.fromkeys(texts(claims, path))]
    if len(values) > MOST_VALUES:
        raise Refused(f"the token gives more than {MOST_VALUES} selectors: set fewer claims")
    long = next((value for value in values if len(value) > LARGEST_VALUE), None)
    if long is not None:
        raise Refused(f"a selector of the token has more than {LARGEST_VALUE} characters: {quote(long[:64])}…")
    return values


def texts(claims: Mapping[str, Any], path: str) -> Iterator[str]:
    """The values at a path, as texts; of a list each one. What is an object, or not there, has none.

    Names may have dots themselves: the longest one that is there is taken first.
    """
    for value in _at(claims, path):
        if isinstance(value, bool):
            yield "true" if value else "false"
        elif isinstance(value, str | int | float):
            yield str(value)


def _at(value: object, path: str) -> Iterator[object]:
    if isinstance(value, list):
        for each in cast(list[object], value):
            yield from _at(each, path)
    elif isinstance(value, dict):
        members, parts = cast(dict[str, object], value), path.split(".")
        for size in range(len(parts), 0, -1):
            name, rest = ".".join(parts[:size]), ".".join(parts[size:])
            if name in members:
                yield from _at(members[name], rest) if rest else _leaves(members[name])
                return


def _leaves(value: object) -> Iterator[object]:
    if isinstance(value, list):
        yield from cast(list[object], value)
    else:
        yield value
