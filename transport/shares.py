"""Sharing out what there is only so much of among the processes that call over a Unix socket."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from weakref import WeakValueDictionary

from transport.limits import Limits
from transport.peer import Process

_READS: Final = 4
_LITTLE: Final = 1000  # what is next to nothing: this part of all


class _Account:
    """How much is held: by all, by a user, or by a process."""

    __slots__ = ("__weakref__", "held")
    held: int

    def __init__(self) -> None:
        self.held = 0


class Share(_Account):
    """What one process holds."""

    __slots__ = ("_all", "_total", "_user")

    def __init__(self, total: int, everybody: _Account, user: _Account) -> None:
        super().__init__()
        self._total: Final = total
        self._all: Final = everybody
        self._user: Final = user

    def fits(self, amount: int = 1) -> bool:
        """Whether the process may take so much more."""
        held, user = self.held + amount, self._user.held + amount
        left = self._total - self._all.held - amount
        if held <= left - user:
            return True
        # Others may have taken of what its user had left, and so put the user over what is left now.
        return held <= self._total // _LITTLE and user <= self._total // 2 and left >= self._total // 4

    def take(self, amount: int = 1) -> None:
        """Counts it, whether or not it fits. A negative amount gives back."""
        self.held += amount
        self._user.held += amount
        self._all.held += amount

    def __str__(self) -> str:
        return f"this process holds {self.held}, its user {self._user.held}, all {self._all.held} of {self._total}"


class Shares:
    """`total` of something. No user may hold more of it than is left, and no process more than its user may still have.

    So one user gets a half at most, one process a third, and whoever comes after those that took what they could still
    finds some: each user that does so leaves half of what it found, each process two thirds. A process that has next to
    nothing is given some of its user's half until a quarter of all is left, however much others took after its user.
    """

    def __init__(self, total: int) -> None:
        self._total: Final = total
        self._all: Final = _Account()
        self._users: Final = WeakValueDictionary[int, _Account]()
        self._processes: Final = WeakValueDictionary[Process, Share]()

    def of(self, process: Process) -> Share:
        """The process's share, the same object as long as anybody keeps it."""
        share = self._processes.get(process)
        if share is None:
            user = self._users.get(process.uid)
            if user is None:
                user = self._users[process.uid] = _Account()
            share = self._processes[process] = Share(self._total, self._all, user)
        return share

    @property
    def used(self) -> int:
        return self._all.held


class Turn:
    """A process's reads in one turn of the event loop: a few, after which the others have theirs.

    Else a process with thousands of connections that always have something to read would have nearly all the time.
    """

    __slots__ = ("__weakref__", "_began", "_left", "_loop", "_waiting")

    def __init__(self) -> None:
        self._loop: Final = asyncio.get_running_loop()
        self._left = _READS
        self._began = False
        self._waiting: Final[deque[Callable[[], None]]] = deque()

    def take(self, again: Callable[[], None]) -> bool:
        """Whether to read now; otherwise `again` is called when it may be."""
        if not self._began:
            self._began = True
            self._loop.call_soon(self._next)
        if not self._left:
            self._waiting.append(again)
            return False
        self._left -= 1
        return True

    def _next(self) -> None:
        self._left = _READS
        self._began = False
        for _ in range(min(_READS, len(self._waiting))):
            self._waiting.popleft()()
        if self._waiting and not self._began:  # those that had their turn are closed
            self._began = True
            self._loop.call_soon(self._next)


@dataclass(frozen=True, slots=True)
class Held:
    """What one process has of a listener: connections, calls, and bytes of requests that wait to be read."""

    connections: Share
    calls: Share
    received: Share


class Callers:
    """A listener's callers."""

    def __init__(self, limits: Limits) -> None:
        self._connections = Shares(limits.connections)
        self._calls = Shares(limits.calls)
        self._received = Shares(limits.received)
        self._turns = WeakValueDictionary[Process, Turn]()
        self._by_pid = WeakValueDictionary[int, Share]()

    def of(self, process: Process) -> Held | None:
        """None for our own process: nobody keeps it from looking after itself."""
        if process.pid == os.getpid():
            return None
        connections = self._by_pid[process.pid] = self._connections.of(process)
        return Held(connections, self._calls.of(process), self._received.of(process))

    def turn(self, process: Process) -> Turn | None:
        """The process's; None for our own."""
        if process.pid == os.getpid():
            return None
        turn = self._turns.get(process)
        if turn is None:
            turn = self._turns[process] = Turn()
        return turn

    def full(self, pid: int) -> Share | None:
        """The process's share of the connections if it has all of it: cheap to ask before anything else is done."""
        share = self._by_pid.get(pid)
        return None if share is None or share.fits() else share
