"""An issuer's keys: fetched when first needed, kept, and fetched again in time and for keys that are not known."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt import PyJWK
from jwt.exceptions import PyJWTError

from operations.errors import Refused, SpireError, TemporarilyUnavailable
from operations.quoting import quote

FRESH: Final = 300.0
"""Seconds after which the keys are fetched anew, in the background."""
STALE: Final = 3600.0
"""Seconds after which nothing counts any more that was fetched before."""
PAUSE: Final = 10.0
"""Seconds at least between two fetches, whoever asks for keys that are not there."""
MOST_KEYS: Final = 100

_RSA_BITS = range(2048, 8193)


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A public key that signs by one algorithm."""

    key_id: str | None
    algorithm: str
    key: PyJWK


def signing_keys(documents: Sequence[msgspec.Raw]) -> tuple[SigningKey, ...]:
    """The keys that can sign by the algorithms known here; others are passed over. Raises Refused for too many."""
    if len(documents) > MOST_KEYS:
        raise Refused(f"{len(documents)} keys, more than the {MOST_KEYS} that an issuer may have")
    return tuple(key for each in documents if (key := _signing_key(each)) is not None)


def _signing_key(document: msgspec.Raw) -> SigningKey | None:
    try:
        fields = msgspec.json.decode(document, type=dict[str, Any])
        if fields.get("use", "sig") != "sig" or "d" in fields or "k" in fields:
            return None
        algorithm = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA"}.get(fields.get("kty", ""))
        if algorithm is None or fields.get("alg", algorithm) != algorithm:
            return None
        key = PyJWK(fields, algorithm)
    except (msgspec.MsgspecError, PyJWTError, TypeError, ValueError, RecursionError):
        return None  # a key of a kind, or of a form, that this is not made for
    key_id = fields.get("kid")
    if not _is_usable(key.key) or not isinstance(key_id, str | None):
        return None
    return SigningKey(key_id, algorithm, key)


def _is_usable(key: object) -> bool:
    if isinstance(key, rsa.RSAPublicKey):
        return key.key_size in _RSA_BITS
    if isinstance(key, ec.EllipticCurvePublicKey):
        return isinstance(key.curve, ec.SECP256R1)
    return isinstance(key, ed25519.Ed25519PublicKey)


class KeySet:
    """The keys of one issuer. One fetch at a time, and one each PAUSE."""

    def __init__(
        self,
        issuer: str,
        fetch: Callable[[], Awaitable[Sequence[msgspec.Raw]]],
        closing: Callable[[], None] | None = None,
    ) -> None:
        """`fetch` raises SpireError. `closing` lets go of what it holds."""
        self._closing = closing
        self._issuer = issuer
        self._fetch = fetch
        self._keys: tuple[SigningKey, ...] = ()
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self._failure: SpireError | None = None
        self._fetching: asyncio.Task[None] | None = None

    async def find(self, key_id: str | None) -> Sequence[SigningKey]:
        """The keys with that id, all for none. Raises TemporarilyUnavailable, Refused where there is none."""
        age = self._age(self._fetched_at)
        if age >= STALE:
            await self._refresh()
        elif age >= FRESH and self._may_try():
            self._begin()
        found = self._with(key_id)
        if not found and self._may_try():
            await self._refresh()
            found = self._with(key_id)
        if not found:
            raise Refused(f"issuer {self._issuer} has no key {quote(key_id or '')} of a kind that is taken")
        return found

    async def close(self) -> None:
        if self._fetching is not None:
            self._fetching.cancel()
            with suppress(asyncio.CancelledError):
                await self._fetching
        if self._closing is not None:
            self._closing()

    def _with(self, key_id: str | None) -> Sequence[SigningKey]:
        return [key for key in self._keys if key_id is None or key.key_id == key_id]

    def _age(self, since: float | None) -> float:
        return STALE if since is None else asyncio.get_running_loop().time() - since

    def _may_try(self) -> bool:
        return self._fetching is not None or self._age(self._tried_at) >= PAUSE

    async def _refresh(self) -> None:
        """Raises what the fetch raised, also while it is not to be tried again yet."""
        if self._may_try():
            await asyncio.shield(self._begin())
        if self._failure is not None:
            raise TemporarilyUnavailable(f"the keys of the token's issuer are not to be had: {self._failure}")

    def _begin(self) -> asyncio.Task[None]:
        if self._fetching is None:
            self._tried_at = asyncio.get_running_loop().time()
            self._fetching = asyncio.create_task(self._fetched())
        return self._fetching

    async def _fetched(self) -> None:
        try:
            self._keys = signing_keys(await self._fetch())
            self._fetched_at, self._failure = asyncio.get_running_loop().time(), None
        except SpireError as error:
            self._failure = error
        finally:
            self._fetching = None
