"""Turns at something slow, so that one user's calls do not keep others' waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


class Turns:
    """At most `each` of a user's calls at once; the others of that user wait in their order."""

    def __init__(self, each: int) -> None:
        self._each = each
        self._lines: dict[int, tuple[asyncio.Semaphore, int]] = {}

    @asynccontextmanager
    async def of(self, uid: int) -> AsyncGenerator[None, None]:
        line, callers = self._lines.get(uid, (asyncio.Semaphore(self._each), 0))
        self._lines[uid] = line, callers + 1
        try:
            async with line:
                yield
        finally:
            line, callers = self._lines[uid]
            if callers > 1:
                self._lines[uid] = line, callers - 1
            else:
                del self._lines[uid]
