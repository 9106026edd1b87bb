"""PostgreSQL away, restarted, frozen, in another's hands: what callers are told, and that nothing is lost."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import asynccontextmanager
from dataclasses import replace as changed
from pathlib import Path

import pytest

from identity.bundles import Bundle, X509Authority
from identity.spiffeid import TrustDomain
from operations.errors import TemporarilyUnavailable
from server.datastore.backend import POSTGRES, Settings
from server.datastore.store import DataStore
from server.entries import EntryIndex
from tests.contract.datastore_backends import entry
from tests.simulators.postgres import Cluster, started
from tests.unit.datastore.sessions import end_sessions, eventually, name_of

ON_POSTGRES = Settings(kind=POSTGRES)
TRUST_DOMAIN = TrustDomain("example.org")


@pytest.fixture(scope="module")
def own() -> Generator[Cluster]:
    """A cluster that these tests stop, start and break."""
    with started() as cluster:
        yield cluster


@pytest.fixture
def cluster(own: Cluster) -> Generator[Cluster]:
    yield own
    if own.process is None:
        own.start()


@pytest.fixture
def connection_string(cluster: Cluster) -> str:
    return cluster.database()


@pytest.fixture
async def store(connection_string: str) -> AsyncIterator[DataStore]:
    opened = await DataStore.open(connection_string, ON_POSTGRES)
    yield opened
    await opened.close()


async def test_while_the_database_is_away_calls_are_told_so_and_later_go_through(
    cluster: Cluster, store: DataStore, caplog: pytest.LogCaptureFixture
) -> None:
    await store.create_entry(entry("before"))
    await asyncio.to_thread(cluster.stop)
    for _ in range(2):
        with pytest.raises(TemporarilyUnavailable, match="cannot be reached"):
            await store.create_entry(entry("during"))
        with pytest.raises(TemporarilyUnavailable, match="cannot be reached"):
            await store.count_entries()
    await asyncio.to_thread(cluster.start)
    assert await store.count_entries() == 1
    await store.create_entry(entry("after"))
    assert await store.count_entries() == 2


async def test_a_session_that_is_killed_costs_no_call(
    cluster: Cluster, store: DataStore, connection_string: str
) -> None:
    for number in range(3):
        await asyncio.gather(store.create_entry(entry(f"w{number}")), *(store.count_entries() for _ in range(8)))
        assert await asyncio.to_thread(end_sessions, cluster, connection_string) >= 2
    assert await store.count_entries() == 3
    await store.create_entry(entry("last"))
    assert await store.count_entries() == 4


async def test_what_became_different_while_the_connection_was_gone_reaches_the_index(
    cluster: Cluster, store: DataStore, connection_string: str
) -> None:
    """Without a call: the writer looks by itself."""
    index = await EntryIndex.follow(store, TRUST_DOMAIN)
    kept = await store.create_entry(entry("kept"))
    altered = await store.create_entry(entry("altered"))
    gone = await store.create_entry(entry("gone"))
    with cluster.connect(name_of(connection_string)) as connection:
        connection.execute("DELETE FROM entries WHERE id = %s", (gone.id,))
        connection.execute("UPDATE entries SET hint = 'x', revision_number = 5 WHERE id = %s", (altered.id,))
    before = index.get(kept.id)
    await asyncio.to_thread(end_sessions, cluster, connection_string)
    await eventually(lambda: index.get(gone.id) is None, "the index hears of it")
    found = index.get(altered.id)
    assert found is not None
    assert (found.record.hint, found.revision) == ("x", 5)
    assert index.get(kept.id) is before


async def test_no_acknowledged_write_is_lost_however_often_the_database_crashes(
    cluster: Cluster, store: DataStore
) -> None:
    index = await EntryIndex.follow(store, TRUST_DOMAIN)
    acknowledged: set[str] = set()
    deleted: set[str] = set()
    refused = 0
    ended = False

    async def write(lane: int) -> None:
        nonlocal refused
        number = 0
        while not ended:
            number += 1
            try:
                made = await store.create_entry(entry(f"{lane}-{number}"))
                if number % 3:
                    acknowledged.add(made.id)
                else:
                    # Whatever it is told, its caller does not know whether it stands.
                    await store.delete_entry(made.id)
                    deleted.add(made.id)
            except TemporarilyUnavailable:
                refused += 1
                await asyncio.sleep(0.02)

    async def more_acknowledged() -> None:
        wanted = len(acknowledged) + 20
        await eventually(lambda: len(acknowledged) > wanted, "writes go through")

    lanes = [asyncio.create_task(write(lane)) for lane in range(4)]
    for number in (signal.SIGQUIT, signal.SIGINT, signal.SIGQUIT):
        await more_acknowledged()
        await asyncio.to_thread(cluster.stop, number)
        await asyncio.sleep(0.3)
        await asyncio.to_thread(cluster.start)
    await more_acknowledged()
    ended = True
    await asyncio.gather(*lanes)
    kept = {each.id: each for each in (await store.list_entries()).items}
    assert acknowledged <= kept.keys()
    assert not deleted & kept.keys()
    assert refused
    indexed = {each.record.id for each in index.authorized_entries(entry().parent_id)}
    assert indexed == kept.keys()


@asynccontextmanager
async def relay(cluster: Cluster, folder: Path) -> AsyncGenerator[tuple[str, asyncio.Event], None]:
    """A way to the cluster that, once the event is set, passes the next COMMIT on and loses the answer."""
    lose = asyncio.Event()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, drop: asyncio.Event) -> None:
        while data := await reader.read(65536):
            if drop.is_set():
                break
            if lose.is_set() and b"COMMIT" in data:
                drop.set()
            writer.write(data)
            await writer.drain()
        if drop.is_set():
            lose.clear()
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(str(cluster.folder / ".s.PGSQL.5432"))
        drop = asyncio.Event()
        await asyncio.wait(
            [asyncio.ensure_future(pump(reader, back, drop)), asyncio.ensure_future(pump(there, writer, drop))],
            return_when=asyncio.FIRST_COMPLETED,
        )
        back.close()
        writer.close()

    server = await asyncio.start_unix_server(accept, str(folder / ".s.PGSQL.5432"))
    yield str(folder), lose
    server.close()


async def test_a_commit_whose_answer_is_lost_is_no_secret_to_the_index(
    cluster: Cluster, connection_string: str, tmp_path: Path
) -> None:
    async with relay(cluster, tmp_path) as (host, lose):
        store = await DataStore.open(connection_string.replace(str(cluster.folder), host), ON_POSTGRES)
        index = await EntryIndex.follow(store, TRUST_DOMAIN)
        doomed = await store.create_entry(entry("doomed"))
        lose.set()
        with pytest.raises(TemporarilyUnavailable, match="was lost while a change was committed: look whether"):
            await store.delete_entry(doomed.id)
        await eventually(lambda: index.get(doomed.id) is None, "the index hears of the commit")
        assert await store.count_entries() == 0
        await store.close()


async def test_a_frozen_database_is_told_within_the_deadline(cluster: Cluster, connection_string: str) -> None:
    store = await DataStore.open(connection_string, ON_POSTGRES, deadline=1.0)
    await store.create_entry(entry("before"))
    with cluster.connect() as connection:
        query = "SELECT pid FROM pg_stat_activity WHERE datname = %s"
        pids = [pid for (pid,) in connection.execute(query, (name_of(connection_string),)) if isinstance(pid, int)]
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(TemporarilyUnavailable, match="did not answer within 1 s"):
            await store.create_entry(entry("during"))
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    await store.create_entry(entry("after"))
    assert await store.count_entries() >= 2
    await store.close()


async def test_a_database_that_stays_frozen_is_left_for_one_that_answers(
    cluster: Cluster, connection_string: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that hangs still holds its connections; a new one may be led to its successor."""
    monkeypatch.setattr("server.datastore.session._HOPELESS", 0.5)
    store = await DataStore.open(connection_string, ON_POSTGRES, deadline=1.0)
    await store.create_entry(entry("before"))
    with cluster.connect() as connection:
        query = "SELECT pid FROM pg_stat_activity WHERE datname = %s"
        [pid] = [pid for (pid,) in connection.execute(query, (name_of(connection_string),)) if isinstance(pid, int)]
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(TemporarilyUnavailable, match="did not answer within 1 s"):
            await store.create_entry(entry("during"))
        # The new session finds the lock still held by the frozen one, and has it ended as soon as it wakes.
        with pytest.raises(TemporarilyUnavailable):
            await store.create_entry(entry("during"))
    finally:
        os.kill(pid, signal.SIGCONT)

    for number in itertools.count():
        try:
            await store.create_entry(entry(f"after{number}"))
            break
        except TemporarilyUnavailable:
            await asyncio.sleep(0.1)
    await store.close()


async def test_a_transaction_that_loses_to_another_session_is_tried_again(
    cluster: Cluster, store: DataStore, connection_string: str
) -> None:
    bundle = await store.create_bundle(Bundle(TRUST_DOMAIN))
    other = changed(bundle, refresh_hint=7).to_proto().SerializeToString()
    tries = 0

    def change(old: Bundle) -> Bundle:
        nonlocal tries
        tries += 1
        return changed(old, x509_authorities=(X509Authority(b"one"),))

    with cluster.connect(name_of(connection_string)) as connection:
        connection.execute("BEGIN")
        connection.execute("UPDATE bundles SET data = %s", (other,))
        editing = asyncio.create_task(store.edit_bundle(TRUST_DOMAIN, change))
        with cluster.connect() as looking:
            waits = "SELECT 1 FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'"
            await eventually(
                lambda: looking.execute(waits, (name_of(connection_string),)).fetchone() is not None, "the edit waits"
            )
        connection.execute("COMMIT")
    edited = await editing
    assert (edited.refresh_hint, edited.x509_authorities) == (7, (X509Authority(b"one"),))
    assert await store.get_bundle(TRUST_DOMAIN) == edited
    assert tries == 1


async def test_a_locked_table_is_temporary(cluster: Cluster, connection_string: str) -> None:
    """The session's own limits in the connection string hold."""
    store = await DataStore.open(f"{connection_string} lock_timeout=100ms", ON_POSTGRES)
    with cluster.connect(name_of(connection_string)) as connection:
        connection.execute("BEGIN")
        connection.execute("LOCK TABLE entries IN EXCLUSIVE MODE")
        with pytest.raises(TemporarilyUnavailable, match="is locked by another session"):
            await store.create_entry(entry())
        assert await store.count_entries() == 0
    await store.create_entry(entry())
    await store.close()


async def test_a_database_that_became_read_only_is_temporary(
    cluster: Cluster, store: DataStore, connection_string: str
) -> None:
    """As a standby is, which a name may point to for a while."""
    await store.create_entry(entry("before"))
    with cluster.connect() as connection:
        name = name_of(connection_string)
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on".encode())
        await asyncio.to_thread(end_sessions, cluster, connection_string)
        with pytest.raises(TemporarilyUnavailable, match="is read-only"):
            await store.create_entry(entry("during"))
        connection.execute(f"ALTER DATABASE {name} RESET ALL".encode())
    await asyncio.to_thread(end_sessions, cluster, connection_string)
    await store.create_entry(entry("after"))
    assert await store.count_entries() == 2
