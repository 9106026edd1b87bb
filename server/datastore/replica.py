"""Reads that a copy of the database may answer: never with less than what was acknowledged.

A copy is behind by as long as its replication takes. So it is asked first whether it has all that this server wrote;
if it has not, or is away, the database itself answers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection

from operations.errors import TemporarilyUnavailable
from server.datastore import backend
from server.datastore.session import Session
from server.datastore.worker import Worker

T = TypeVar("T")

_QUEUE = 1024
# Seconds, of both questions together less than a call may take.
_DEADLINE = 5.0


class ReplicaReader:
    """`primary` asks the database itself."""

    def __init__(self, copy: backend.Replica, primary: Worker, *, lifetime: float = 0.0) -> None:
        self._copy = copy
        self._primary = primary
        # One thread, so that the session which said how far it is, is also the one that answers.
        self._worker = Worker("replica", lambda outcome: Session(copy, outcome, lifetime=lifetime), limit=_QUEUE)
        self._writes = 0
        # How far the database was after that many writes.
        self._marked = -1
        self._position = ""

    def written(self) -> None:
        """Something was acknowledged, which whoever reads from now on must see."""
        self._writes += 1

    async def run(self, work: Callable[[Connection], T], *, deadline: float) -> T:
        """What `work` returns, in a transaction on the copy or on the database itself."""
        try:
            position = await self._current(deadline)
            if await self._worker.run(lambda copy, _: self._copy.reached(copy, position), deadline=_DEADLINE):
                return await self._worker.run(lambda copy, _: work(copy), deadline=deadline)
        except TemporarilyUnavailable:
            pass
        return await self._primary.run(lambda connection, _: work(connection), deadline=deadline)

    async def close(self) -> None:
        await self._worker.close()

    async def _current(self, deadline: float) -> str:
        writes = self._writes
        if self._marked != writes:
            self._position = await self._primary.run(
                lambda connection, _: self._copy.position(connection), deadline=deadline
            )
            self._marked = writes
        return self._position
