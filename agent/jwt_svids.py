"""JWT-SVIDs for workloads: from the cache, or from the server, which is asked again while it is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from agent.backoff import Backoff
from agent.entries import Entry
from agent.jwt_cache import JwtCache, JwtSvid, key
from agent.server_client import TIMEOUT, ServerClient
from operations import logs
from operations.errors import SpireError, TemporarilyUnavailable
from transport.status import Code, RpcError

_RETRY_INTERVAL = 1.0
_NOT_WORTH_A_RETRY = frozenset(
    (Code.UNKNOWN, Code.CANCELLED, Code.DEADLINE_EXCEEDED, Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED)
)

_log = logs.get("manager")


class JwtSvids:
    def __init__(
        self,
        client: ServerClient,
        cache: JwtCache,
        is_away: Callable[[], bool] = lambda: False,
        *,
        hit_timeout: float = TIMEOUT,
    ) -> None:
        """`is_away` says whether it is known that the server does not answer: who has a token need not wait then.

        Otherwise the server has `hit_timeout` seconds while there is a token that could be given instead.
        """
        self._client = client
        self._cache = cache
        self._is_away = is_away
        self._hit_timeout = hit_timeout

    async def fetch(self, entry: Entry, audience: Sequence[str]) -> JwtSvid:
        """A token with more than half of its life left, or a shorter one while the server gives none.

        An entry whose tokens carry an id of their own (`jti`) gets a fresh one each time. Raises SpireError classes.
        """
        of = key(entry.spiffe_id, audience)
        cached = None if entry.include_jti else self._cache.get(of)
        if cached is not None and not cached.expires_soon(time.time()):
            return cached
        in_hand = cached is not None and not cached.is_expired(time.time())
        if cached is not None and in_hand and self._is_away():
            return cached
        try:
            fresh = await self._ask(entry, audience, self._hit_timeout if in_hand else TIMEOUT)
        except SpireError as error:
            if cached is None or cached.is_expired(time.time()):
                raise
            _log.warning("Unable to renew JWT; returning cached copy", spiffe_id=entry.spiffe_id, error=error)
            return cached
        now = time.time()
        if cached is not None and fresh.is_expired(now) and not cached.is_expired(now):
            _log.error("The server sent a JWT-SVID that has expired; returning cached copy", spiffe_id=entry.spiffe_id)
            return cached
        if not entry.include_jti:
            self._cache.put(of, fresh)
        return fresh

    async def _ask(self, entry: Entry, audience: Sequence[str], patience: float) -> JwtSvid:
        deadline = time.monotonic() + patience
        backoff = Backoff(_RETRY_INTERVAL)
        while True:
            left = deadline - time.monotonic()
            try:
                return await self._client.new_jwt_svid(entry, audience, max(left, 0.001))
            except RpcError as error:
                wait = backoff.next()
                if error.code in _NOT_WORTH_A_RETRY or wait is None or wait >= deadline - time.monotonic():
                    raise TemporarilyUnavailable(f"failed to fetch JWT SVID: {error}") from error
            await asyncio.sleep(wait)
