"""What one process may have open and unread on the Workload API, so that none takes the agent's memory for itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager

from transport.peer import Process
from transport.status import Code, RpcError

MOST_STREAMS = 1024
_LARGE = 64 << 10  # what the transport buffers of a stream in any case
_LARGE_AT_ONCE = 16


class Allowance:
    """One process's streams."""

    def __init__(self) -> None:
        self.streams = 0
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)

    @asynccontextmanager
    async def sending(self, size: int) -> AsyncGenerator[None, None]:
        """While a response of `size` bytes is on its way. Large ones wait until the process has read others."""
        if size <= _LARGE:
            yield
            return
        async with self._large:
            yield


class StreamLimits:
    def __init__(self, most: int = MOST_STREAMS) -> None:
        """`most` is how many streams a process may have."""
        self._most = most
        self._allowances: dict[Process | None, Allowance] = {}

    @contextmanager
    def stream_of(self, process: Process | None) -> Generator[Allowance, None, None]:
        """While one of the process's streams is open. Raises RpcError when it has too many."""
        allowance = self._allowances.setdefault(process, Allowance())
        if allowance.streams >= self._most:
            raise RpcError(
                Code.RESOURCE_EXHAUSTED, f"this process has {self._most} streams open: close those that are not needed"
            )
        allowance.streams += 1
        try:
            yield allowance
        finally:
            allowance.streams -= 1
            if not allowance.streams:
                del self._allowances[process]
