"""What a datastore that outlives its process promises: nothing that was acknowledged is lost."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from msgspec.structs import replace

from server.datastore.backend import POSTGRES, Settings
from server.datastore.records import AttestedNode, JoinToken
from server.datastore.store import DataStore
from tests.contract.datastore_backends import DURABLE, Backend, backend_of, entry, selected
from tests.simulators.postgres import Cluster
from tests.simulators.spire import eventually

ROOT = Path(__file__).parents[2]
KILLS = 10


@pytest.fixture(params=DURABLE)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    return backend_of(request, tmp_path)


async def test_everything_is_there_after_opening_again(backend: Backend) -> None:
    store = await backend.open()
    made = await store.create_entry(entry())
    made = await store.update_entry(replace(made, hint="h"), ["hint"])
    node = await store.create_node(
        AttestedNode(
            spiffe_id="spiffe://example.org/spire/agent/a",
            attestation_type="x509pop",
            serial_number="1",
            expires_at=5,
            selectors=selected("a:b"),
        )
    )
    await store.create_join_token(JoinToken("t", 100))
    await store.set_ca_journal(b"journal")
    await store.close()

    again = await backend.open()
    assert (await again.list_entries()).items == (made,)
    assert await again.get_node(node.spiffe_id) == node
    assert await again.get_join_token("t") == JoinToken("t", 100)
    assert await again.get_ca_journal() == b"journal"
    await again.close()


async def test_closing_finishes_what_was_asked(backend: Backend) -> None:
    store = await backend.open()
    writes = [asyncio.create_task(store.create_entry(entry(f"w{number}"))) for number in range(30)]
    await asyncio.sleep(0)
    await store.close()
    await asyncio.gather(*writes)
    again = await backend.open()
    assert await again.count_entries() == 30
    await again.close()


async def test_two_callers_cannot_take_the_same_join_token(backend: Backend) -> None:
    store = await backend.open()
    names = [str(number) for number in range(10)]
    for name in names:
        await store.create_join_token(JoinToken(name, 100))
    taken = await asyncio.gather(*(store.take_join_token(name) for name in names for _ in range(2)))
    assert sorted(token.token for token in taken if token) == names
    await store.close()


async def test_kill_9_loses_nothing_that_was_acknowledged(backend: Backend) -> None:
    entries: set[str] = set()
    tokens: set[str] = set()
    taking: set[str] = set()
    taken: set[str] = set()
    for run in range(KILLS):
        for line in await lines_until_killed(backend, run):
            kind, _, name = line.partition(" ")
            {"entry": entries, "token": tokens, "taking": taking, "taken": taken}[kind].add(name)

    store = await backend.open()
    kept = {each.id: each for each in (await store.list_entries()).items}
    assert entries <= kept.keys()
    assert all(each.selectors == selected("a:1 b:2") for each in kept.values())
    assert {name for name in tokens - taking if await store.get_join_token(name) is None} == set()
    assert {name for name in taken if await store.take_join_token(name) is not None} == set()
    await store.close()
    assert len(entries) >= KILLS
    assert taken


async def test_kill_9_while_the_database_is_made_leaves_one_that_opens(tmp_path: Path) -> None:
    """As soon as the file is there, and a little later each time."""
    for run in range(4):
        path = tmp_path / f"{run}.sqlite3"
        process = await victim(Backend(str(path)), run)
        await asyncio.to_thread(appeared, path)
        await asyncio.sleep(0.004 * run)
        process.kill()
        await process.communicate()
        store = await DataStore.open(str(path))
        await store.create_entry(entry("late"))
        await store.close()


async def test_kill_9_while_the_tables_are_made_leaves_a_database_that_opens(postgres: Cluster) -> None:
    """As soon as its first session is there, and a little later each time."""
    for run in range(4):
        backend = Backend(postgres.database(), Settings(kind=POSTGRES))
        process = await victim(backend, run)
        name = backend.connection_string.rpartition("dbname=")[2]
        await asyncio.to_thread(eventually, partial(postgres.sessions, name), "a session")
        await asyncio.sleep(0.02 * run)
        process.kill()
        await process.communicate()
        store = await backend.open()
        await store.create_entry(entry("late"))
        await store.close()


def appeared(path: Path) -> None:
    give_up = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < give_up
        time.sleep(0.001)


async def victim(backend: Backend, run: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.contract.datastore_victim",
        backend.settings.kind,
        backend.connection_string,
        str(run),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )


async def lines_until_killed(backend: Backend, run: int) -> list[str]:
    """Start a writer, kill it at a random moment, and return what it had told."""
    process = await victim(backend, run)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    told: list[str] = []
    wanted = random.randint(1, 120)
    while len(told) < wanted:
        told.append((await process.stdout.readline()).decode().rstrip("\n"))
    process.send_signal(signal.SIGKILL)
    # A last line may be cut short by the kill: it was not told in full.
    rest = await process.stdout.read()
    told.extend(rest.decode().split("\n")[:-1])
    assert await process.wait() == -signal.SIGKILL
    return told
