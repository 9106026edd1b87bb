"""Room in memory that attestations share: logs are large, and nodes many."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


class Budget:
    """`size` bytes. Who finds too few free waits; its attestation's time runs."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._size = size
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def of(self, size: int) -> AsyncGenerator[None, None]:
        """What asks for more than there is has all of it, alone."""
        taken = min(size, self._size)
        async with self._changed:
            await self._changed.wait_for(lambda: self._free >= taken)
            self._free -= taken
        try:
            yield
        finally:
            self._free += taken
            async with self._changed:
                self._changed.notify_all()
