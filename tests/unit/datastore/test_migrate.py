"""Migrations and tables are the same schema, and Alembic is imported only to migrate."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from server.datastore import migrate
from server.datastore.store import DataStore

ROOT = Path(__file__).parents[3]


def schema_of(path: Path) -> list[tuple[object, ...]]:
    """Every table's columns, keys and indexes, and the version."""
    with closing(sqlite3.connect(path)) as connection:
        tables = [
            name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
        ]
        found: list[tuple[object, ...]] = []
        for table in tables:
            found.extend((table, *row) for row in connection.execute(f"PRAGMA table_info({table})"))
            found.extend((table, *row) for row in connection.execute(f"PRAGMA foreign_key_list({table})"))
        found.extend(
            connection.execute(
                "SELECT m.name, i.seqno, i.name FROM sqlite_master m, pragma_index_info(m.name) i"
                " WHERE m.type = 'index' ORDER BY 1, 2"
            )
        )
        found.extend(
            connection.execute(
                "SELECT name, sql LIKE '%AUTOINCREMENT%' FROM sqlite_master WHERE type = 'table' ORDER BY 1"
            )
        )
        found.extend(connection.execute("SELECT version_num FROM alembic_version"))
        return found


async def test_migrating_from_the_beginning_gives_the_schema_of_a_new_database(tmp_path: Path) -> None:
    new, old = tmp_path / "new.sqlite3", tmp_path / "old.sqlite3"
    with closing(sqlite3.connect(old)) as connection, connection:
        connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
    for path in (new, old):
        await (await DataStore.open(str(path))).close()
    assert schema_of(old) == schema_of(new)


async def test_every_revision_has_its_file(tmp_path: Path) -> None:
    files = sorted((ROOT / "server/datastore/migrations/versions").glob("*.py"))
    assert tuple(file.name.partition("_")[0] for file in files) == migrate.REVISIONS


def test_a_new_database_needs_no_alembic_no_orm_and_nothing_of_postgresql(tmp_path: Path) -> None:
    program = """
import asyncio, sys
from server.datastore.store import DataStore
async def main():
    for _ in range(2):
        await (await DataStore.open(sys.argv[1])).close()
asyncio.run(main())
heavy = {"alembic", "sqlalchemy.orm", "sqlalchemy.ext.asyncio", "cryptography", "greenlet", "mako"}
heavy |= {"psycopg", "sqlalchemy.dialects.postgresql", "server.datastore.conninfo"}
sys.exit(", ".join(sorted(heavy & sys.modules.keys())) or None)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "d.sqlite3")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
