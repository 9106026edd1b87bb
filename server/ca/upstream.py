"""The upstream authority at work: what it mints is checked before it is used, what it tells afterwards is taken over.

An upstream is another program, perhaps another's: every answer is measured by what a verifier of this trust domain
would say of it, and nothing is waited for without end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric import ec

from identity import der, x509svid
from identity.bundles import Bundle, JwtAuthority, X509Authority
from identity.spiffeid import SpiffeId, TrustDomain
from identity.tainting import Followed, follow
from operations import logs
from operations.errors import InvalidArgument, Refused, SpireError, TemporarilyUnavailable, Unsupported
from plugins.keymanager import Key
from plugins.upstreamauthority import MintedX509Ca, Updates, UpstreamAuthority
from server.ca import conformance, names, signing
from server.ca.settings import AuthorityStore
from server.ca.template import Leaf, LeafTemplate

MINT_TIMEOUT = 60.0
PUBLISH_TIMEOUT = 5.0
SUBSCRIBE_DELAY = 5.0
"""Seconds."""

_T = TypeVar("_T")

_log = logs.get("ca_manager")


class Upstream:
    """Calls an upstream authority and follows its updates, in tasks of its own, until `close`.

    `tainted` hears of the roots (DER) that it says are tainted and that this server's bundle does not say so of yet.
    """

    def __init__(
        self,
        authority: UpstreamAuthority,
        store: AuthorityStore,
        trust_domain: TrustDomain,
        now: Callable[[], float],
        tainted: Callable[[Sequence[bytes]], None],
    ) -> None:
        self._authority = authority
        self._store = store
        self._trust_domain = trust_domain
        self._now = now
        self._tainted = tainted
        self._following: dict[str, tuple[asyncio.Task[None], Updates[Any]]] = {}
        self._warned = False

    async def mint(self, key: Key, csr: bytes, ttl: int) -> tuple[bytes, ...]:
        """The chain (DER) of a CA certificate for this key; its roots are in the bundle by then.

        Raises Refused for one that SVIDs cannot be issued by, and what upstream, key and store raise.
        """
        minted = await _within(MINT_TIMEOUT, self._authority.mint_x509_ca(csr, ttl), "mint the X.509 CA")
        try:
            await self._check(key, minted)
            await self._take_roots(minted.roots)
        except BaseException:
            await minted.updates.aclose()
            raise
        await self._follow("X.509 root", minted.updates, self._take_roots)
        return tuple(minted.chain)

    async def publish(self, key: JwtAuthority) -> bool:
        """Make the key known upstream, and take over the keys it has; False where the upstream has no such ability.

        Raises what upstream and store raise.
        """
        try:
            published = await _within(PUBLISH_TIMEOUT, self._authority.publish_jwt_key(key), "publish the JWT key")
        except Unsupported:
            if not self._warned:
                self._warned = True
                _log.warning(
                    "UpstreamAuthority plugin does not support JWT-SVIDs. Workloads managed by this server may have "
                    "trouble communicating with workloads outside this cluster when using JWT-SVIDs.",
                    plugin_name=self._authority.name,
                )
            return False
        try:
            await self._take_keys(published.keys)
        except BaseException:
            await published.updates.aclose()
            raise
        await self._follow("JWT key", published.updates, self._take_keys)
        return True

    async def subscribe(self) -> None:
        """Follow the trust domain's bundle, where the upstream tells of it. Tries until it is there."""
        while True:
            await asyncio.sleep(SUBSCRIBE_DELAY)
            try:
                bundle = await self._authority.subscribe_to_local_bundle()
            except Unsupported:
                return
            except SpireError as error:
                _log.error("Unable to subscribe to the local bundle of the upstream authority", error=error)
                continue
            try:
                await self._take_both((bundle.roots, bundle.keys))
            except SpireError as error:
                # The next update brings the whole bundle again.
                _log.error("Failed to store the bundle received by the upstream authority plugin.", error=error)
            await self._follow("bundle", bundle.updates, self._take_both)
            return

    async def close(self) -> None:
        for what in tuple(self._following):
            await self._leave(what)
        await self._authority.close()

    async def _check(self, key: Key, minted: MintedX509Ca) -> None:
        """Have the new authority sign a leaf that nobody gets, and verify it as everybody would."""
        now = signing.utc(int(self._now()))
        try:
            if not minted.chain:
                raise Refused("it has no certificate")
            if not minted.roots:
                raise Refused("it comes without roots")
            for root in minted.roots:
                der.certificate(root.der)
            conformance.check_x509_ca(minted.chain[0], self._trust_domain, now)
            leaf = await self._throwaway_leaf(key, minted.chain[0])
            roots = [root.der for root in minted.roots]
            x509svid.verify((leaf, *minted.chain), {self._trust_domain: roots}, now)
        except (Refused, InvalidArgument) as error:
            raise Refused(f"X509 CA minted by upstream authority is invalid: {error}") from error

    async def _throwaway_leaf(self, key: Key, certificate: bytes) -> bytes:
        issuer = der.certificate(certificate)
        template = LeafTemplate(issuer, key.key_type)
        leaf = Leaf(
            serial=1,
            not_before=int(issuer.not_valid_before_utc.timestamp()),
            not_after=int(issuer.not_valid_after_utc.timestamp()),
            subject=names.leaf_name_der(),
            spiffe_id=str(SpiffeId(self._trust_domain, "/spire/throwaway")),
            dns_names=(),
            public_key=der.subject_public_key_info(ec.generate_private_key(ec.SECP256R1()).public_key()),
        )
        tbs = template.tbs(leaf)
        scheme = signing.SCHEMES[key.key_type]
        return signing.certificate(tbs, template.algorithm, await key.sign(signing.digest(tbs, scheme), scheme))

    async def _take_roots(self, roots: Sequence[X509Authority]) -> None:
        if not roots:
            raise InvalidArgument("the upstream authority sent an empty set of roots")
        for root in roots:
            der.certificate(root.der)
        outcomes: list[Followed] = []

        def change(bundle: Bundle) -> Bundle:
            outcomes.append(follow(bundle, roots))
            return outcomes[-1].bundle

        await self._store.edit(change)
        for key_id in outcomes[-1].revoked:
            _log.info("X.509 authority revoked", subject_key_id=key_id)
        if outcomes[-1].tainted:
            self._tainted(outcomes[-1].tainted)

    async def _take_keys(self, keys: Sequence[JwtAuthority]) -> None:
        for key in keys:
            await self._store.append_jwt_authority(key)

    async def _take_both(self, told: tuple[Sequence[X509Authority], Sequence[JwtAuthority]]) -> None:
        await self._take_roots(told[0])
        await self._take_keys(told[1])

    async def _follow(self, what: str, updates: Updates[_T], take: Callable[[_T], Awaitable[None]]) -> None:
        """Take updates in the place of those that were followed before."""
        await self._leave(what)
        self._following[what] = asyncio.create_task(_taken(what, updates, take)), updates

    async def _leave(self, what: str) -> None:
        if what in self._following:
            task, updates = self._following.pop(what)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await updates.aclose()


async def _taken(what: str, updates: Updates[_T], take: Callable[[_T], Awaitable[None]]) -> None:
    try:
        async for update in updates:
            try:
                await take(update)
            except SpireError as error:
                _log.error(f"Failed to store {what} updates received by the upstream authority plugin.", error=error)
    except SpireError as error:
        _log.error(
            f"The upstream authority plugin stopped streaming {what} updates prematurely. Will retry later.",
            error=error,
        )


async def _within(seconds: float, call: Awaitable[_T], what: str) -> _T:
    try:
        async with asyncio.timeout(seconds):
            return await call
    except TimeoutError as error:
        raise TemporarilyUnavailable(f"the upstream authority did not {what} within {seconds:.0f} s") from error
