"""What one caller may have open and unread on the agent's APIs, so that none takes the agent's memory for itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Hashable
from contextlib import asynccontextmanager, contextmanager

from transport.peer import Process
from transport.status import Code, RpcError

MOST_STREAMS = 1024
_LARGE = 64 << 10  # what the transport buffers of a stream in any case
_LARGE_AT_ONCE = 16
_MOST_KEPT = 32 << 20


class Allowance:
    """One caller's streams."""

    def __init__(self) -> None:
        self.streams = 0
        self._kept = 0
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)

    @asynccontextmanager
    async def sending(self, size: int) -> AsyncGenerator[None, None]:
        """While a response of `size` bytes is on its way. Large ones wait until the process has read others."""
        if size <= _LARGE:
            yield
            return
        async with self._large:
            yield

    @contextmanager
    def keeping(self, size: int) -> Generator[None, None, None]:
        """While a stream needs `size` bytes of what the caller asked with. Raises RpcError when all need too much."""
        if self._kept + size > _MOST_KEPT:
            raise RpcError(Code.RESOURCE_EXHAUSTED, "the open streams of this caller ask for too much: close some")
        self._kept += size
        try:
            yield
        finally:
            self._kept -= size


class StreamLimits:
    def __init__(self, most: int = MOST_STREAMS) -> None:
        """`most` is how many streams a caller may have."""
        self._most = most
        self._allowances: dict[Hashable, Allowance] = {}

    @contextmanager
    def stream_of(self, caller: Hashable) -> Generator[Allowance, None, None]:
        """While one of the caller's streams is open: a process, or who it is. Raises RpcError when it has too many."""
        allowance = self._allowances.setdefault(caller, Allowance())
        if allowance.streams >= self._most:
            who = "process" if isinstance(caller, Process) else "caller"
            raise RpcError(
                Code.RESOURCE_EXHAUSTED, f"this {who} has {self._most} streams open: close those that are not needed"
            )
        allowance.streams += 1
        try:
            yield allowance
        finally:
            allowance.streams -= 1
            if not allowance.streams:
                del self._allowances[caller]
