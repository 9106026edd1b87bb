"""Whether the server can do its work: it can when the trust bundle can be read and has an authority."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

from operations.errors import SpireError
from operations.logs import Logger

WATCH_INTERVAL = 5.0
"""Seconds between two looks of a watcher."""


class Health:
    """`probe` says why the server is not healthy, or None; it may raise SpireError."""

    def __init__(self, probe: Callable[[], Awaitable[str | None]], log: Logger) -> None:
        self._probe = probe
        self._log = log

    async def serving(self) -> bool:
        try:
            reason = await self._probe()
        except SpireError as error:
            self._log.warning("Health check failed", reason="unable to fetch bundle", error=error)
            return False
        if reason is not None:
            self._log.warning("Health check failed", reason=reason)
        return reason is None

    async def changes(self) -> AsyncGenerator[bool, None]:
        """The state now, then each change of it."""
        last: bool | None = None
        while True:
            serving = await self.serving()
            if serving is not last:
                last = serving
                yield serving
            await asyncio.sleep(WATCH_INTERVAL)
