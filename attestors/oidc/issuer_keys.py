"""The keys that an issuer has: asked for when they are wanted, kept for a while, and asked for anew when they change.

One question is on its way at a time, whoever waits for it, and it is not asked again at once: tokens that name keys
which nobody has are cheap to make.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec

from attestors.oidc import jwks
from attestors.oidc.configuration import Issuer, require_https
from attestors.oidc.jwks import KeySet
from attestors.sigstore.http import HttpClient
from attestors.sigstore.urls import Url
from operations import documents
from operations.errors import InvalidArgument, SpireError, TemporarilyUnavailable
from operations.logs import Logger
from operations.quoting import quote

FRESH = 300.0
"""Seconds for which keys are not asked for again."""
KEPT = 3600.0
"""Seconds for which they are used while the issuer does not answer: the longest that a key that was withdrawn lasts."""
APART = 15.0
"""Seconds between two questions, whatever tokens name."""
PATIENCE = 8.0
"""Seconds that an issuer may take for all of its answer."""

_HEADERS = {"Accept": "application/json"}


class _Discovered(msgspec.Struct, frozen=True):
    issuer: str = ""
    jwks_uri: str = ""


class IssuerKeys:
    def __init__(
        self, name: str, issuer: Issuer, http: HttpClient, log: Logger, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`clock` is in seconds."""
        self._name = name
        self._issuer = issuer
        self._http = http
        self._log = log
        self._clock = clock
        self._keys: KeySet | None = None
        self._since = 0.0
        self._asked = float("-inf")
        self._fault: SpireError | None = None
        self._asking: asyncio.Task[None] | None = None

    async def get(self) -> KeySet:
        """Raises TemporarilyUnavailable while the issuer tells no keys."""
        if self._keys is None or self._clock() - self._since >= FRESH:
            await self._ask()
        return self._usable()

    async def newer(self) -> KeySet:
        """After a token named a key that was not among them. Raises as `get`."""
        await self._ask()
        return self._usable()

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    def _usable(self) -> KeySet:
        if self._keys is None or self._clock() - self._since >= KEPT:
            raise TemporarilyUnavailable(f"the keys of issuer {self._name} are not known: {self._fault}")
        return self._keys

    async def _ask(self) -> None:
        """Wait for the question that is on its way; begin one unless the last is only just over."""
        if self._asking is None or self._asking.done():
            if self._clock() - self._asked < APART:
                return
            self._asked = self._clock()
            self._asking = asyncio.create_task(self._fetch())
        await asyncio.shield(self._asking)

    async def _fetch(self) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                document = await self._document(await self._url(), jwks.LARGEST)
            self._keys, self._since, self._fault = jwks.parse(document), self._clock(), None
        except TimeoutError:
            self._fault = TemporarilyUnavailable(f"it gave no answer in {PATIENCE:g} s")
        except SpireError as error:
            self._fault = error
        if self._fault is not None:
            self._log.warning("The keys of an issuer cannot be had", issuer=self._name, error=self._fault)

    async def _url(self) -> Url:
        if self._issuer.jwks_url:
            return Url.parse(self._issuer.jwks_url)
        # OpenID Connect Discovery 1.0, 4: what follows is appended to the issuer's path.
        url = Url.parse(f"{self._name.rstrip('/')}/.well-known/openid-configuration")
        found = documents.decode(await self._document(url, jwks.LARGEST), _Discovered)
        if found.issuer != self._name:
            raise InvalidArgument(f"{url} is the configuration of {quote(found.issuer[:200])}, another issuer")
        return require_https("jwks_uri", found.jwks_uri)

    async def _document(self, url: Url, largest: int) -> bytes:
        answer = await self._http.get(url, headers=_HEADERS, largest=largest)
        if answer.status != 200:
            raise TemporarilyUnavailable(f"{url} answered {answer.status}")
        return answer.body
