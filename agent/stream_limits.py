"""What workloads may have open and unread, so that none takes the agent's memory, or the others' turn, for itself.

How many connections and calls a process may have is shared out by the transport (transport.shares); here it is what of
the responses waits for it to read.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final
from weakref import WeakValueDictionary

from transport.limits import KIB, MIB, Limits
from transport.peer import Process
from transport.shares import Share, Shares

SOCKET: Final = Limits(
    keepalive=7200.0,
    streams=10_000,  # SPIRE has no limit: what a process may have is bounded by its share of the calls
    send_buffer=0,  # one response at a time on a stream: only the latest matters to who is slow
    write_buffer=0,
    read=4 * KIB,  # as in SPIRE
    unread=8 * MIB,
    control_frames=500,
    calls=20_000,
    received=64 * MIB,
)
"""Of the socket that workloads reach."""

_UNREAD: Final = 64 * MIB
_NOBODY: Final = Process(0, 0, 0, 0)


class Allowance:
    """One process's responses that are on their way."""

    def __init__(self, share: Share) -> None:
        self._share = share
        self._waiting: deque[asyncio.Future[None]] = deque()

    def __enter__(self) -> Allowance:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def sending(self, size: int) -> Sending:
        """Around a response of `size` bytes while it is on its way: `async with allowance.sending(size): …`.

        It waits while the process leaves too much unread. One response is always let through.
        """
        return Sending(self, size)

    def fits(self, size: int) -> bool:
        return not self._share.held or self._share.fits(size)

    async def room(self, size: int) -> None:
        """Wait until it fits. Whoever waited first goes first."""
        again = False
        while not self.fits(size):
            turn = asyncio.get_running_loop().create_future()
            (self._waiting.appendleft if again else self._waiting.append)(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.cancelled():
                    self._waiting.remove(turn)
                else:
                    self._wake()  # it had its turn and makes nothing of it
                raise
            again = True

    def take(self, size: int) -> None:
        self._share.take(size)
        if size < 0 or self._waiting:
            self._wake()

    def _wake(self) -> None:
        if self._waiting:
            self._waiting.popleft().set_result(None)


class Sending:
    __slots__ = ("_allowance", "_size")

    def __init__(self, allowance: Allowance, size: int) -> None:
        self._allowance = allowance
        self._size = size

    async def __aenter__(self) -> None:
        if not self._allowance.fits(self._size):
            await self._allowance.room(self._size)
        self._allowance.take(self._size)

    async def __aexit__(self, *_: object) -> None:
        self._allowance.take(-self._size)


class StreamLimits:
    def __init__(self, unread: int = _UNREAD) -> None:
        """`unread` bytes of responses may wait to be read by all processes together, besides one of each."""
        self._shares = Shares(unread)
        self._allowances: WeakValueDictionary[Process, Allowance] = WeakValueDictionary()

    def stream_of(self, process: Process | None) -> Allowance:
        """Around one of the process's streams: `with limits.stream_of(process) as allowance: …`."""
        process = process or _NOBODY
        allowance = self._allowances.get(process)
        if allowance is None:
            allowance = self._allowances[process] = Allowance(self._shares.of(process))
        return allowance
