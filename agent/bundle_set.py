"""The bundles that the agent knows: its own trust domain's, and those that entries federate with.

Everything here runs on the event loop and never waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

from identity.bundles import Bundle


def x509_authorities(bundle: Bundle) -> bytes:
    """DER certificates without separators."""
    return b"".join(authority.der for authority in bundle.x509_authorities)


def jwt_authorities(bundle: Bundle) -> bytes:
    """A JWK Set as any reader of such knows it."""
    return bundle.to_jwks(x509=False, standard=True).encode()


@dataclass(frozen=True)
class Bundles:
    """All bundles at one moment, by trust domain name. What is sent of them is made once for all streams."""

    by_name: Mapping[str, Bundle]

    @cached_property
    def x509(self) -> Mapping[str, bytes]:
        """X.509 authorities by trust domain ID: DER certificates without separators."""
        return {each.trust_domain.id: x509_authorities(each) for each in self.by_name.values()}

    @cached_property
    def size(self) -> int:
        """Roughly the bytes that a response with one of the two takes."""
        return max(sum(len(name) + len(value) for name, value in each.items()) for each in (self.x509, self.jwt))

    @cached_property
    def jwt(self) -> Mapping[str, bytes]:
        """JWT authorities by trust domain ID: a JWK Set."""
        return {each.trust_domain.id: jwt_authorities(each) for each in self.by_name.values()}


class BundleNews:
    """The bundles for one stream: those of now, then after each change. It never ends.

    Only the latest matters: what a slow stream has not taken is replaced.
    """

    def __init__(self, bundles: BundleSet) -> None:
        self._bundles = bundles
        self._news = asyncio.Event()
        self._news.set()

    def wake(self) -> None:
        self._news.set()

    def __aiter__(self) -> BundleNews:
        return self

    async def __anext__(self) -> Bundles:
        await self._news.wait()
        self._news.clear()
        return self._bundles.current


class BundleSet:
    def __init__(self, own: Bundle) -> None:
        self._own = own.trust_domain.name
        self._waiting: set[BundleNews] = set()
        self.current = Bundles({self._own: own})

    @property
    def own(self) -> Bundle:
        """The agent's own trust domain's."""
        return self.current.by_name[self._own]

    def get(self, trust_domain: str) -> Bundle | None:
        """By the trust domain's name."""
        return self.current.by_name.get(trust_domain)

    def replace(self, bundles: Mapping[str, Bundle]) -> set[str]:
        """Take over all bundles, by trust domain name; the agent's own stays when it is missing. What differs now."""
        known, fresh = self.current.by_name, {self._own: self.own, **bundles}
        differing = {name for name in fresh.keys() | known.keys() if fresh.get(name) != known.get(name)}
        if differing:
            self.current = Bundles(fresh)
            for each in self._waiting:
                each.wake()
        return differing

    @contextmanager
    def subscribe(self) -> Generator[BundleNews, None, None]:
        news = BundleNews(self)
        self._waiting.add(news)
        try:
            yield news
        finally:
            self._waiting.discard(news)
