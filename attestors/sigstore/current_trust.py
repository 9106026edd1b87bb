"""Trust that is loaded once, and then again each day, while what was loaded before goes on being trusted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from attestors.sigstore.trust import TrustRoot
from operations.errors import SpireError, TemporarilyUnavailable
from operations.logs import Logger

LOAD_SECONDS: Final = 60.0

_LIFE = 24 * 3600.0
_RETRY = 600.0


class CurrentTrust:
    """`load` blocks, and has a thread of its own."""

    def __init__(self, load: Callable[[], TrustRoot], log: Logger, *, life: float = _LIFE) -> None:
        """`life` is in seconds."""
        self._blocking = load
        self._log = log
        self._life = life
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="sigstore-trust")
        self._lock = asyncio.Lock()
        self._trusted: TrustRoot | None = None
        self._due = 0.0
        self._renewing: asyncio.Task[None] | None = None

    async def get(self) -> TrustRoot:
        """Raises ConfigurationError and TemporarilyUnavailable when there never was any."""
        if self._trusted is None:
            async with self._lock:
                if self._trusted is None:
                    self._trusted = await self._load()
        elif asyncio.get_running_loop().time() >= self._due and self._renewing is None:
            self._renewing = asyncio.create_task(self._renew())
        return self._trusted

    async def close(self) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def _renew(self) -> None:
        try:
            self._trusted = await self._load()
        except SpireError as error:
            self._log.warning("Trust for image signatures cannot be loaded anew", error=error)
            self._due = asyncio.get_running_loop().time() + _RETRY
        finally:
            self._renewing = None

    async def _load(self) -> TrustRoot:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(LOAD_SECONDS):
                trusted = await loop.run_in_executor(self._worker, self._blocking)
        except TimeoutError as error:
            raise TemporarilyUnavailable(f"the TUF repository gave no answer within {LOAD_SECONDS:g} s") from error
        self._due = loop.time() + self._life
        return trusted
