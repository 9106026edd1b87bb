"""What the datastore contract suite needs of each backend."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from identity.selectors import Selector
from server.datastore.backend import DEFAULTS, POSTGRES, Settings
from server.datastore.records import Entry
from server.datastore.store import DataStore
from tests.simulators.postgres import Cluster

AGENT = "spiffe://example.org/spire/agent/a"


@dataclass(frozen=True)
class Backend:
    connection_string: str
    settings: Settings = DEFAULTS

    async def open(self) -> DataStore:
        return await DataStore.open(self.connection_string, self.settings)


BACKENDS = ("postgres", "sqlite", "sqlite-memory")
# What was written to these is there after closing and opening again.
DURABLE = ("postgres", "sqlite")


def backend_of(request: pytest.FixtureRequest, folder: Path) -> Backend:
    """A new database of the kind that the fixture is parametrized with."""
    match request.param:
        case "postgres":
            cluster: Cluster = request.getfixturevalue("postgres")
            return Backend(cluster.database(), Settings(kind=POSTGRES))
        case "sqlite":
            return Backend(str(folder / "datastore.sqlite3"))
        case _:
            return Backend("file:contract?mode=memory")


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
