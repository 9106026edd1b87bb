"""Upstream authorities (spire.plugin.server.upstreamauthority.v1): who signs this server's X.509 authority.

An upstream authority mints the server's CA certificate, and may tell of its roots as they change, take the server's
JWT keys up, and tell what the bundle of the whole trust domain is. Where there is none, the server signs itself.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Never, Protocol, TypeVar

from identity.bundles import JwtAuthority, X509Authority

T_co = TypeVar("T_co", covariant=True)

X509Roots = Sequence[X509Authority]
JwtKeys = Sequence[JwtAuthority]


class Updates(Protocol[T_co]):
    """What is the case now, whole, whenever it changes. It ends for an upstream that tells of nothing (any more), and
    raises SpireError when it breaks off."""

    def __aiter__(self) -> AsyncIterator[T_co]: ...

    def aclose(self) -> Coroutine[Any, Any, None]:
        """Called by whoever got it, once it is not read any more, and also when it never was.

        An async generator that never began does not notice: what holds a connection needs a class.
        """
        ...


@dataclass(frozen=True, slots=True)
class MintedX509Ca:
    """A CA certificate with what stands above it.

    `chain` is DER: the new certificate, then every further one up to, but without, a root. `updates` are of the roots.
    """

    chain: Sequence[bytes]
    roots: X509Roots
    updates: Updates[X509Roots]


@dataclass(frozen=True, slots=True)
class PublishedJwtKeys:
    """The JWT keys of the trust domain, and how they change."""

    keys: JwtKeys
    updates: Updates[JwtKeys]


@dataclass(frozen=True, slots=True)
class LocalBundle:
    """The trust domain's authorities as the upstream has them, and how they change."""

    roots: X509Roots
    keys: JwtKeys
    updates: Updates[tuple[X509Roots, JwtKeys]]


async def no_updates() -> AsyncGenerator[Never, None]:
    """The updates of an upstream that tells of none: they end at once."""
    nothing: Never
    for nothing in ():
        yield nothing


class UpstreamAuthority(Protocol):
    """All calls raise SpireError classes: TemporarilyUnavailable for what may go through later."""

    @property
    def name(self) -> str: ...

    async def mint_x509_ca(self, csr: bytes, preferred_ttl: int) -> MintedX509Ca:
        """Sign a CA certificate for a DER PKCS #10 request. The lifetime asked for is in seconds, and a wish only."""
        ...

    async def publish_jwt_key(self, key: JwtAuthority) -> PublishedJwtKeys:
        """Make a JWT key known to the whole trust domain. Raises Unsupported where the upstream has no such ability."""
        ...

    async def subscribe_to_local_bundle(self) -> LocalBundle:
        """Follow the trust domain's bundle. Raises Unsupported where the upstream has no such ability."""
        ...

    async def close(self) -> None:
        """Give back connections and keys. Updates that are still read end."""
        ...
