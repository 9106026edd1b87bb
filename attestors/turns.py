"""Turns at something slow, so that one user's, or one container's, calls do not keep others' waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Hashable
from contextlib import asynccontextmanager


class Turns:
    """At most `each` of a caller's calls at once; the others of that caller wait in their order."""

    def __init__(self, each: int) -> None:
        self._each = each
        self._lines: dict[Hashable, tuple[asyncio.Semaphore, int]] = {}

    @asynccontextmanager
    async def of(self, caller: Hashable) -> AsyncGenerator[None, None]:
        line, callers = self._lines.get(caller, (asyncio.Semaphore(self._each), 0))
        self._lines[caller] = line, callers + 1
        try:
            async with line:
                yield
        finally:
            line, callers = self._lines[caller]
            if callers > 1:
                self._lines[caller] = line, callers - 1
            else:
                del self._lines[caller]
