"""What the datastore contract suite needs of each backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from identity.selectors import Selector
from server.datastore.records import Entry
from server.datastore.store import DataStore

AGENT = "spiffe://example.org/spire/agent/a"


@dataclass(frozen=True)
class Backend:
    connection_string: str

    async def open(self) -> DataStore:
        return await DataStore.open(self.connection_string)


BACKENDS: dict[str, Callable[[Path], Backend]] = {
    "sqlite": lambda folder: Backend(str(folder / "datastore.sqlite3")),
    "sqlite-memory": lambda _: Backend("file:contract?mode=memory"),
}


# What was written to these is there after closing and opening again.
DURABLE = ("sqlite",)


def entry(
    name: str = "w",
    *,
    id: str = "",
    parent_id: str = AGENT,
    selectors: str = "unix:uid:1000",
    federates_with: tuple[str, ...] = (),
    hint: str = "",
    downstream: bool = False,
    expires_at: int = 0,
) -> Entry:
    """An entry of `spiffe://example.org/<name>`; `selectors` are given as words."""
    return Entry(
        id=id,
        spiffe_id=f"spiffe://example.org/{name}",
        parent_id=parent_id,
        selectors=selected(selectors),
        federates_with=federates_with,
        hint=hint,
        downstream=downstream,
        expires_at=expires_at,
    )


def selected(words: str) -> tuple[Selector, ...]:
    return tuple(Selector.parse(word) for word in words.split())
