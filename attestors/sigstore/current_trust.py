"""Trust that is loaded once, and then again each day, while what was loaded before goes on being trusted."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Final

from attestors.sigstore.trust import TrustRoot
from operations.errors import SpireError, TemporarilyUnavailable
from operations.logs import Logger

LOAD_SECONDS: Final = 60.0

_LIFE = 24 * 3600.0
_RETRY = 600.0


class CurrentTrust:
    """`load` blocks, and has a thread of its own, which no exit of the program waits for."""

    def __init__(self, load: Callable[[], TrustRoot], log: Logger, *, life: float = _LIFE) -> None:
        """`life` is in seconds."""
        self._blocking = load
        self._log = log
        self._life = life
        self._lock = asyncio.Lock()
        self._busy = False
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

    async def _renew(self) -> None:
        try:
            self._trusted = await self._load()
        except SpireError as error:
            self._log.warning("Trust for image signatures cannot be loaded anew", error=error)
            self._due = asyncio.get_running_loop().time() + _RETRY
        finally:
            self._renewing = None

    async def _load(self) -> TrustRoot:
        if self._busy:
            raise TemporarilyUnavailable("the TUF repository still gives no answer")
        future: Future[TrustRoot] = Future()
        self._busy = True
        threading.Thread(target=self._run, args=(future,), name="sigstore", daemon=True).start()
        try:
            async with asyncio.timeout(LOAD_SECONDS):
                trusted = await asyncio.wrap_future(future)
        except TimeoutError as error:
            raise TemporarilyUnavailable(f"the TUF repository gave no answer within {LOAD_SECONDS:g} s") from error
        self._due = asyncio.get_running_loop().time() + self._life
        return trusted

    def _run(self, future: Future[TrustRoot]) -> None:
        loaded: TrustRoot | Exception
        try:
            loaded = self._blocking()
        except Exception as error:  # noqa: BLE001 - it is raised where it is awaited
            loaded = error
        # Before anybody hears of it, and may ask for another.
        self._busy = False
        # Whoever waited may have given up.
        with contextlib.suppress(InvalidStateError):
            if isinstance(loaded, Exception):
                future.set_exception(loaded)
            else:
                future.set_result(loaded)
