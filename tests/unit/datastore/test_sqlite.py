"""SQLite: connection strings, and files that are not as they should be."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Connection

from identity.selectors import Selector
from operations.errors import (
    ConfigurationError,
    Corrupt,
    PermanentlyUnusable,
    Refused,
    SpireError,
    TemporarilyUnavailable,
)
from server.datastore.records import Entry
from server.datastore.sqlite import Sqlite
from server.datastore.store import DataStore


def entry(name: str = "w", hint: str = "") -> Entry:
    return Entry(
        spiffe_id=f"spiffe://example.org/{name}",
        parent_id="spiffe://example.org/spire/agent/a",
        selectors=(Selector("unix", "uid:1"),),
        hint=hint,
    )


async def fill(path: Path, count: int = 1) -> None:
    store = await DataStore.open(str(path))
    await asyncio.gather(*(store.create_entry(entry(f"w{number}")) for number in range(count)))
    await store.close()


def sql(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def content(path: Path) -> bytes:
    return path.read_bytes()


def modes(folder: Path) -> dict[str, int]:
    return {each.name: stat.S_IMODE(each.stat().st_mode) for each in folder.iterdir()}


async def refusal(path: Path, kind: type[SpireError]) -> str:
    """The one line that opening the file ends in; the file must be as before."""
    before = content(path)
    with pytest.raises(kind) as raised:
        await DataStore.open(str(path))
    assert content(path) == before
    text = str(raised.value)
    assert str(path) in text
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    "form",
    [
        "{folder}/d.sqlite3",
        "file:{folder}/d.sqlite3",
        "file://{folder}/d.sqlite3",
        "file://localhost{folder}/d.sqlite3",
        "file:{folder}/d.sqlite3?_journal_mode=DELETE&mode=rwc",
    ],
)
async def test_a_path_and_a_uri_name_the_same_file(tmp_path: Path, form: str) -> None:
    store = await DataStore.open(form.format(folder=tmp_path))
    await store.create_entry(entry())
    await store.close()
    store = await DataStore.open(str(tmp_path / "d.sqlite3"))
    assert await store.count_entries() == 1
    await store.close()


@pytest.mark.parametrize("name", ["d.sqlite3", "./d.sqlite3", "a b?c%20#d.sqlite3"])
async def test_a_relative_path_is_taken_literally(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    await fill(Path(name))
    assert sorted(modes(tmp_path)) == sorted((name.removeprefix("./"), f"{name.removeprefix('./')}.lock"))


@pytest.mark.parametrize(
    "form", [":memory:", "file::memory:", "file:test?mode=memory", "file:x?mode=memory&cache=shared"]
)
async def test_databases_in_memory_are_apart(form: str) -> None:
    one, two = await DataStore.open(form), await DataStore.open(form)
    await one.create_entry(entry())
    assert (await one.count_entries(), await two.count_entries()) == (1, 0)
    await one.close()
    await two.close()


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("", "needs a connection_string"),
        ("mysql://user:secret@host/db", "cannot use 'mysql'"),
        ("file://host/d.sqlite3", "names a host"),
        ("file:/d.sqlite3?mode=ro", "read-only"),
    ],
)
async def test_a_connection_string_that_cannot_be_used_is_refused(form: str, text: str) -> None:
    with pytest.raises(ConfigurationError, match=text) as raised:
        await DataStore.open(form)
    assert "secret" not in str(raised.value)


async def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "d.sqlite3"
    store = await DataStore.open(str(path))
    await store.create_entry(entry())
    assert modes(tmp_path) == dict.fromkeys(("d.sqlite3", "d.sqlite3-shm", "d.sqlite3-wal", "d.sqlite3.lock"), 0o600)
    await store.close()


async def test_every_commit_is_synced(tmp_path: Path) -> None:
    database = Sqlite(str(tmp_path / "d.sqlite3"))
    database.identify()
    with database.connect(writer=True) as connection:
        pragmas = ("journal_mode", "synchronous", "foreign_keys")
        values = [connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in pragmas]
    assert values == ["wal", 2, 1]
    database.dispose()


async def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"the folder .*/absent .* does not exist: create it"):
        await DataStore.open(str(tmp_path / "absent" / "d.sqlite3"))


async def test_a_path_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(PermanentlyUnusable, match=f"{tmp_path} cannot be opened for writing"):
        await DataStore.open(str(tmp_path))


async def test_a_database_of_the_go_server_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "d.sqlite3"
    sql(path, "CREATE TABLE registered_entries (id INTEGER PRIMARY KEY)", "CREATE TABLE migrations (version INTEGER)")
    assert "was made by the Go SPIRE server and cannot be used" in await refusal(path, ConfigurationError)


async def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.sqlite3"
    sql(path, "CREATE TABLE holidays (name TEXT)")
    assert "was made by another program" in await refusal(path, ConfigurationError)


async def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.sqlite3"
    await fill(path)
    sql(path, "UPDATE alembic_version SET version_num = '9999'")
    text = await refusal(path, ConfigurationError)
    assert "was made by a newer version of this server (schema 9999" in text


def not_a_database(path: Path) -> None:
    path.write_bytes(b"these are not the bytes you look for" * 1000)


def overwritten_in_the_middle(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        for offset in range(4096, size - 4096, 8192):
            file.seek(offset)
            file.write(os.urandom(2048))


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 // 4096 * 4096)


@pytest.mark.parametrize("damage", [not_a_database, overwritten_in_the_middle, cut_short])
async def test_a_damaged_database_is_refused_and_left(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = tmp_path / "d.sqlite3"
    await fill(path, 300)
    damage(path)
    text = await refusal(path, Corrupt)
    assert "is damaged" in text
    assert "restore it from a backup" in text


class Small(Sqlite):
    """A database whose disk has `pages` pages of 4 KiB."""

    pages = 60

    def connect(self, *, writer: bool) -> Connection:
        connection = super().connect(writer=writer)
        connection.exec_driver_sql(f"PRAGMA max_page_count = {self.pages}")
        connection.rollback()
        return connection


async def test_a_full_disk_is_temporary_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "d.sqlite3"
    await fill(path)
    store = DataStore(Small(str(path)))
    writes = [store.create_entry(entry(f"big{number}", hint="h" * 900)) for number in range(500)]
    results = await asyncio.gather(*writes, return_exceptions=True)
    made = [result for result in results if isinstance(result, Entry)]
    refused = [result for result in results if not isinstance(result, Entry)]
    assert made
    assert refused
    assert {type(error) for error in refused} == {TemporarilyUnavailable}
    assert f"no room left for the database {path}: free space on its disk" in {str(error) for error in refused}
    assert await store.count_entries() == 1 + len(made)
    await store.delete_entry(made[0].id)
    await store.close()

    store = await DataStore.open(str(path))
    assert (await store.create_entry(entry("late"))).id
    assert await store.count_entries() == 1 + len(made)
    await store.close()


async def test_a_locked_database_is_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.datastore.sqlite._BUSY_TIMEOUT", 0.05)
    path = tmp_path / "d.sqlite3"
    store = await DataStore.open(str(path))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(TemporarilyUnavailable, match="is locked by another process"):
            await store.create_entry(entry())
        assert await store.count_entries() == 0
        other.execute("ROLLBACK")
    await store.create_entry(entry())
    await store.close()


async def test_a_database_damaged_while_open_says_so(tmp_path: Path) -> None:
    path = tmp_path / "d.sqlite3"
    await fill(path, 300)
    store = await DataStore.open(str(path))
    overwritten_in_the_middle(path)
    with pytest.raises(Corrupt, match="is damaged"):
        await store.list_entries()
    await store.close()


_LOOK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
print(connection.execute("SELECT count(*) FROM entries").fetchone()[0])
connection.close()
"""


async def looked_into(path: Path) -> int:
    """The number of entries that another process sees."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", _LOOK, str(path), stdout=subprocess.PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0
    return int(output)


async def test_a_program_that_looks_into_the_database_takes_nothing_away_on_leaving(tmp_path: Path) -> None:
    """The last one to leave deletes the journal, and SQLite knows by its locks whether others are there still."""
    path = tmp_path / "d.sqlite3"
    store = await DataStore.open(str(path))
    assert await store.count_entries() == 0
    await store.create_entry(entry("before"))
    assert await looked_into(path) == 1
    assert path.with_name("d.sqlite3-wal").exists()
    await store.create_entry(entry("after"))
    # What another process would find now is what a start after a crash finds.
    assert await looked_into(path) == 2
    await store.close()


async def test_a_second_server_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "d.sqlite3"
    first = await DataStore.open(str(path))
    with pytest.raises(Refused, match="is in use by another server: stop it, or give this one its own"):
        await DataStore.open(str(path))
    await first.create_entry(entry())
    await first.close()
    again = await DataStore.open(str(path))
    assert await again.count_entries() == 1
    await again.close()
