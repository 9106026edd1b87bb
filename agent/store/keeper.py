"""When the store is written: soon after the first SVIDs have come, then now and then if something has changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agent.store.content import Held
from agent.store.store import Store
from identity.spiffeid import SpiffeId
from operations import logs
from operations.errors import SpireError

LOOK = 2.0
INTERVAL = 30.0
"""Seconds at least between two writings, however often something changes."""

_log = logs.get("store")


class Keeper:
    def __init__(
        self,
        store: Store,
        agent: Callable[[], SpiffeId],
        held: Callable[[], Held | None],
        *,
        look: float = LOOK,
        interval: float = INTERVAL,
    ) -> None:
        """`held` gives what is to be kept now, a copy that nobody changes, or None for what is there already.

        Times are in seconds.
        """
        self._store = store
        self._agent = agent
        self._held = held
        self._look = look
        self._interval = interval
        self._kept: tuple[SpiffeId, Held] | None = None
        self._told = False
        self._failed = False
        self._stopped = False

    def stop(self) -> None:
        """Write nothing any more."""
        self._stopped = True

    async def run(self) -> None:
        """Until cancelled. A disk that is full or hangs holds up nothing but this."""
        if not self._store.possible:
            self._tell_once()
            await asyncio.Event().wait()
        while True:
            await asyncio.sleep(self._look)
            if await self.keep():
                await asyncio.sleep(max(0.0, self._interval - self._look))

    def _tell_once(self) -> None:
        if not self._told:
            self._told = True
            _log.info(
                "The key manager cannot seal what is stored: nothing is kept for a restart while the server is away"
            )

    async def keep(self) -> bool:
        """Write if there is something new. Returns whether it tried."""
        held = self._held()
        if held is None or self._stopped or not self._store.possible:
            return False
        agent = self._agent()
        if (agent, held) == self._kept:
            return False
        try:
            await self._store.write(agent, held)
        except (OSError, SpireError) as error:
            # Once: it is tried again and again.
            if not self._failed:
                _log.error("Could not keep the SVIDs for outages; what was kept before stays", error=error)
            self._failed = True
        else:
            self._kept, self._failed = (agent, held), False
        return True
