"""An upstream authority that tests drive: whose root signs, what it tells of its roots and keys, and how it fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Generic, TypeVar

from authorities import issuing
from identity.bundles import JwtAuthority, X509Authority
from identity.spiffeid import TrustDomain
from operations.errors import SpireError, Unsupported
from plugins.upstreamauthority import LocalBundle, MintedX509Ca, PublishedJwtKeys
from tests.simulators.pki import Authority

T = TypeVar("T")


class Updates(Generic[T]):
    """Told to whoever listens; an error ends them."""

    def __init__(self) -> None:
        self._listening: list[Listener[T]] = []

    @property
    def listeners(self) -> int:
        return len(self._listening)

    def tell(self, update: T | SpireError) -> None:
        for listener in self._listening:
            listener.queue.put_nowait(update)

    def listen(self) -> Listener[T]:
        listener = Listener(self._listening)
        self._listening.append(listener)
        return listener


class Listener(Generic[T]):
    def __init__(self, others: list[Listener[T]]) -> None:
        self.queue: asyncio.Queue[T | SpireError] = asyncio.Queue()
        self._others = others

    async def __aiter__(self) -> AsyncIterator[T]:
        while True:
            update = await self.queue.get()
            if isinstance(update, SpireError):
                await self.aclose()
                raise update
            yield update

    async def aclose(self) -> None:
        if self in self._others:
            self._others.remove(self)


class FakeUpstream:
    """`signer` signs, `above` goes along with what it signed, `roots` are told of. Failures are raised by each call.

    `change` has a look at every chain before it is handed out.
    """

    name = "fake"

    def __init__(self, signer: Authority, *, now: Callable[[], float], publishes: bool = False) -> None:
        self.signer = signer
        self.above: tuple[bytes, ...] = ()
        self.roots: list[X509Authority] = [X509Authority(signer.der)]
        self.keys: list[JwtAuthority] = []
        self.publishes = publishes
        self.failing: SpireError | None = None
        self.hanging = False
        self.change: Callable[[tuple[bytes, ...]], tuple[bytes, ...]] = lambda chain: chain
        self.minted = 0
        self.longest = 2**31
        """Seconds that what it signs lives at most."""
        self.closed = False
        self.root_updates: Updates[Sequence[X509Authority]] = Updates()
        self.key_updates: Updates[Sequence[JwtAuthority]] = Updates()
        self.bundle_updates: Updates[tuple[Sequence[X509Authority], Sequence[JwtAuthority]]] = Updates()
        self._now = now

    async def mint_x509_ca(self, csr: bytes, preferred_ttl: int) -> MintedX509Ca:
        await self._begin()
        self.minted += 1
        ca = issuing.Ca(self.signer.certificate, self.signer.key)
        ttl = min(preferred_ttl, self.longest)
        certificate = issuing.sign(ca, csr, TrustDomain("example.org"), ttl, int(self._now()))
        chain = self.change((certificate, *self.above))
        return MintedX509Ca(chain, tuple(self.roots), self.root_updates.listen())

    async def publish_jwt_key(self, key: JwtAuthority) -> PublishedJwtKeys:
        await self._begin()
        self._require_publishing()
        self.keys.append(key)
        return PublishedJwtKeys(tuple(self.keys), self.key_updates.listen())

    async def subscribe_to_local_bundle(self) -> LocalBundle:
        await self._begin()
        self._require_publishing()
        return LocalBundle(tuple(self.roots), tuple(self.keys), self.bundle_updates.listen())

    async def close(self) -> None:
        self.closed = True

    def replace_signer(self, signer: Authority, *, tainted: bool = False) -> None:
        """Another root signs from now on; the one before stays, tainted or not."""
        before = [X509Authority(each.der, tainted or each.tainted) for each in self.roots]
        self.signer = signer
        self.roots = [*before, X509Authority(signer.der)]

    async def _begin(self) -> None:
        if self.hanging:
            await asyncio.Event().wait()
        if self.failing is not None:
            raise self.failing

    def _require_publishing(self) -> None:
        if not self.publishes:
            raise Unsupported("not implemented")
