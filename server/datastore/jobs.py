"""What a worker's threads are given to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from server.datastore.records import Changes

if TYPE_CHECKING:
    from sqlalchemy import Connection

T = TypeVar("T")
Work = Callable[["Connection", Changes], T]
"""Statements in a transaction. May be run again from the start when the transaction comes to nothing."""


@dataclass(slots=True)
class Job:
    """Some work, and what became of it. `future` belongs to the event loop, the rest to the thread until delivery."""

    work: Work[Any]
    future: asyncio.Future[Any]
    changes: Changes = field(default_factory=Changes)
    result: Any = None
    error: BaseException | None = None
    done: bool = False

    def start(self) -> None:
        """Forget an earlier try."""
        self.changes = Changes()
        self.result = None
        self.error = None
