"""The agent's own SVID over time: renewed, or attested for anew, before it expires."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from agent import csr
from agent.attest import attest
from agent.backoff import Backoff
from agent.denial import STRANGER, Unwelcome, is_banned, is_final, is_unknown_authority, must_reattest
from agent.identity import AgentSvid, next_key, received
from agent.rotation import RotationStrategy, proven_by
from agent.server_client import ServerClient
from agent.startup import Start
from operations import logs, metrics
from operations.errors import Refused, SpireError
from plugins.keymanager import Key
from plugins.nodeattestor import Reattesting

_FIRST_RETRY = 5.0
_LONGEST_WAIT = 60.0
_SHORTEST_WAIT = 0.1
_LOOK = 5.0

_log = logs.get("manager")


class Expired(Refused):
    """The SVID ran out before the server renewed it; only another attestation helps, by `regain`."""


class OwnSvid:
    def __init__(
        self,
        client: ServerClient,
        start: Start,
        authorities: Callable[[], Sequence[bytes]],
        strategy: RotationStrategy,
        tolerates_stranger: Callable[[], Awaitable[bool]],
    ) -> None:
        """`authorities` gives the trust domain's X.509 authorities (DER) at the time of a new attestation.

        `tolerates_stranger` says whether to go on although the server is one that nobody vouches for.
        """
        self._client = client
        self._start = start
        self._trust_domain = start.address.trust_domain
        self._authorities = authorities
        self._strategy = strategy
        self._tolerates_stranger = tolerates_stranger
        self._next_key: Key | None = None
        self._hurry = asyncio.Event()
        begins = client.svid.begins
        self._rotate_at = self._moment(begins, strategy.rotate_at(begins, client.svid.expires))

    @property
    def current(self) -> AgentSvid:
        return self._client.svid

    @property
    def next_key(self) -> Key | None:
        """The key that the next SVID will be for, while the server has not certified it."""
        return self._next_key

    @property
    def is_expired(self) -> bool:
        return self.current.expires <= time.time()

    def renew_now(self) -> None:
        self._hurry.set()

    async def run(self) -> None:
        """Raises RpcError when the agent is not welcome any more, Expired when it is too late."""
        backoff = Backoff(_FIRST_RETRY, ceiling=_LONGEST_WAIT)
        while True:
            await self._wait_until_due()
            try:
                await self._rotate()
            except SpireError as error:
                await asyncio.sleep(self._after_failure(error, backoff))
            else:
                backoff.reset()

    async def _wait_until_due(self) -> None:
        """With a look at the clock now and then: machines sleep."""
        while not self._hurry.is_set() and (left := self._rotate_at - time.time()) > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left, _LOOK)):
                    await self._hurry.wait()

    def _after_failure(self, error: SpireError, backoff: Backoff) -> float:
        """How long to wait before the next try; raises when there is no point in it."""
        what = "reattest agent" if self.current.reattestable else "rotate agent SVID"
        _log.error(f"Could not {what}", error=error)
        if must_reattest(error) or is_banned(error):
            raise error
        left = self.current.expires - time.time()
        if left <= 0:
            raise Expired(f"current SVID has already expired and {what} failed: {error}") from error
        return max(_SHORTEST_WAIT, min(backoff.next() or _LONGEST_WAIT, left / 4))

    async def _rotate(self) -> None:
        if self.current.reattestable:
            await self.reattest()
        else:
            await self._renew()

    @metrics.timed("agent_svid", "rotate")
    async def _renew(self) -> None:
        # A key that the server did not certify the last time is offered again: no key store fills up with retries.
        if self._next_key is None:
            self._next_key = await next_key(self._start.keys, self.current.key)
        chain = await self._client.renew(await csr.agent_request(self._next_key))
        await self._take(received(chain, self._next_key, self._trust_domain, reattestable=False, previous=self.current))
        _log.info("Successfully rotated agent SVID", spiffe_id=self.current.spiffe_id)

    def require_reattestable(self) -> None:
        if not self.current.reattestable:
            raise Refused("attestation method is not re-attestable")

    async def reattest(self) -> None:
        """Attest anew over a connection of its own. Raises RpcError and Refused, also when the node may not."""
        self.require_reattestable()
        await self._attest()

    async def regain(self) -> None:
        """Attest as a start would, again and again while the server is away or answers nonsense.

        For an agent whose SVID has expired, or is not known any more. Raises SpireError when the server's answer, or
        the configuration, leaves no hope.
        """
        backoff = Backoff(_FIRST_RETRY, ceiling=_LONGEST_WAIT)
        while True:
            try:
                await self._attest()
                return
            except SpireError as error:
                if is_final(error):
                    raise
                if is_unknown_authority(error) and not await self._tolerates_stranger():
                    raise Unwelcome(STRANGER) from error
                wait = backoff.next() or _LONGEST_WAIT
                _log.error("Could not reattest agent", error=error, retry_interval=f"{wait:.1f}s")
            await asyncio.sleep(wait)

    @metrics.timed("node", "attest")
    async def _attest(self) -> None:
        # The server forgets the old SVID at once, so nothing may go on with it.
        start = self._start
        async with self._client.paused():
            attested = await attest(start.address, start.attestor, start.keys, self.current.key, self._authorities())
            await self._store(attested.svid)
            await self._use(attested.svid)
        _log.info("Successfully reattested node", spiffe_id=self.current.spiffe_id)

    async def _take(self, svid: AgentSvid) -> None:
        # The server forgets the old SVID when it sees the new one: that one must be safe before.
        await self._store(svid)
        async with self._client.paused():
            await self._use(svid)

    async def _use(self, svid: AgentSvid) -> None:
        await self._client.use(svid)
        self._hurry.clear()
        self._next_key = None
        now = time.time()
        self._rotate_at = self._moment(now, self._strategy.of_new(now, svid.expires))

    def _moment(self, attested: float, renewal: float) -> float:
        """When to prove anew what this node is: at the renewal, or before, at the attestor's own interval."""
        metrics.gauge("agent_svid", "expiration", value=self.current.expires)
        attestor = self._start.attestor
        if self.current.reattestable and isinstance(attestor, Reattesting) and attestor.interval:
            return proven_by(renewal, attested, attestor.interval)
        return renewal

    async def store(self) -> None:
        """Keep the current SVID for the next start."""
        await self._store(self.current)

    async def _store(self, svid: AgentSvid) -> None:
        try:
            await asyncio.to_thread(self._start.storage.store_svid, svid.chain, reattestable=svid.reattestable)
        except OSError as error:
            _log.warning("Could not store SVID", error=error)

    async def forget(self) -> None:
        """Let the next start attest anew."""
        try:
            await asyncio.to_thread(self._start.storage.delete_svid)
        except OSError as error:
            _log.error("Failed to remove SVID", error=error)
