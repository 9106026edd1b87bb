"""What a caller may have open, unread and kept who asks for the identities of others, or what is served at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Hashable
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from transport.status import Code, RpcError

MOST_STREAMS: Final = 1024
_LARGE: Final = 64 << 10  # what the transport buffers of a stream in any case
_LARGE_AT_ONCE: Final = 16
_MOST_KEPT: Final = 32 << 20


class Allowance:
    """One caller's streams."""

    def __init__(self) -> None:
        self.streams = 0
        self._kept = 0
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)

    @asynccontextmanager
    async def sending(self, size: int) -> AsyncGenerator[None, None]:
        """While a response of `size` bytes is on its way. Large ones wait until the caller has read others."""
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


class CallerLimits:
    """Callers are told apart by what they are: a process, a SPIFFE ID."""

    def __init__(self, most: int = MOST_STREAMS) -> None:
        """`most` is how many streams a caller may have."""
        self._most = most
        self._allowances: dict[Hashable, Allowance] = {}

    @contextmanager
    def stream_of(self, caller: Hashable) -> Generator[Allowance, None, None]:
        """While one of the caller's streams is open. Raises RpcError when it has too many."""
        allowance = self._allowances.setdefault(caller, Allowance())
        if allowance.streams >= self._most:
            raise RpcError(
                Code.RESOURCE_EXHAUSTED, f"this caller has {self._most} streams open: close those that are not needed"
            )
        allowance.streams += 1
        try:
            yield allowance
        finally:
            allowance.streams -= 1
            if not allowance.streams:
                del self._allowances[caller]
