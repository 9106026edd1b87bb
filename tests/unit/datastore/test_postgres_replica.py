"""A read-only copy answers listings, but never with less than what was acknowledged."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Generator

import pytest

from operations.errors import TemporarilyUnavailable
from server.datastore.backend import POSTGRES, Settings
from server.datastore.records import AttestedNode
from server.datastore.store import DataStore
from tests.contract.datastore_backends import entry
from tests.simulators.postgres import Cluster, following, started
from tests.unit.datastore.sessions import eventually, name_of


@pytest.fixture(scope="module")
def primary() -> Generator[Cluster]:
    with started() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def standby(primary: Cluster) -> Generator[Cluster]:
    with following(primary) as cluster:
        yield cluster


@pytest.fixture
async def connection_string(primary: Cluster, standby: Cluster) -> str:
    made = primary.database()
    with standby.connect() as connection:
        query = "SELECT 1 FROM pg_database WHERE datname = %s"
        await eventually(
            lambda: connection.execute(query, (name_of(made),)).fetchone() is not None, "the copy has the database"
        )
    return made


@pytest.fixture
async def store(primary: Cluster, standby: Cluster, connection_string: str) -> AsyncIterator[DataStore]:
    copy = connection_string.replace(str(primary.folder), str(standby.folder))
    opened = await DataStore.open(connection_string, Settings(kind=POSTGRES, replica=copy))
    yield opened
    await opened.close()


def transactions(cluster: Cluster, connection_string: str) -> int:
    """How many were made in the database so far."""
    with cluster.connect() as connection:
        row = connection.execute(
            "SELECT xact_commit FROM pg_stat_database WHERE datname = %s", (name_of(connection_string),)
        ).fetchone()
    assert row is not None
    assert isinstance(row[0], int)
    return row[0]


async def test_the_copy_answers_listings_once_it_has_all(
    standby: Cluster, store: DataStore, connection_string: str
) -> None:
    await store.create_entry(entry())
    before = transactions(standby, connection_string)
    for _ in itertools.count():
        assert await store.count_entries() == 1
        if transactions(standby, connection_string) > before + 20:
            break
        await asyncio.sleep(0.05)


async def test_while_the_copy_is_behind_the_database_itself_answers(standby: Cluster, store: DataStore) -> None:
    await store.create_entry(entry("before"))
    with standby.connect() as connection:
        connection.execute("SELECT pg_wal_replay_pause()")
        try:
            for number in range(1, 4):
                made = await store.create_entry(entry(f"w{number}"))
                assert made in (await store.list_entries()).items
                await store.create_node(
                    AttestedNode(
                        spiffe_id=f"spiffe://example.org/spire/agent/{number}",
                        attestation_type="t",
                        serial_number="1",
                        expires_at=1,
                    )
                )
                assert await store.count_nodes() == number
        finally:
            connection.execute("SELECT pg_wal_replay_resume()")
    assert await store.count_entries() == 4


async def test_while_the_copy_is_away_the_database_itself_answers(standby: Cluster, store: DataStore) -> None:
    await store.create_entry(entry())
    await asyncio.to_thread(standby.stop)
    try:
        assert len((await store.list_entries()).items) == 1
    finally:
        await asyncio.to_thread(standby.start)
    assert await store.count_entries() == 1


async def test_a_copy_that_cannot_be_reached_at_the_start_is_named(connection_string: str) -> None:
    settings = Settings(kind=POSTGRES, replica="host=/nowhere dbname=copy password=secret")
    with pytest.raises(TemporarilyUnavailable, match="the database copy on /nowhere:5432 cannot be reached") as raised:
        await DataStore.open(connection_string, settings)
    assert "secret" not in str(raised.value)
