"""Nothing outside of sqlite.py ties the datastore to SQLite, and nothing outside of postgres*.py to PostgreSQL."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import make_url, select
from sqlalchemy.schema import CreateIndex, CreateTable

from server.datastore import schema
from server.datastore.matching import matches
from server.datastore.records import Match

FOLDER = Path(__file__).parents[3] / "server/datastore"
POSTGRESQL = make_url("postgresql://").get_dialect()()
# The modules, the line that chooses one, and the hints to one that the other does not see.
ALLOWED = {"sqlite.py", "postgres.py", "postgres_errors.py", "backend.py", "schema.py"}
HINTING = FOLDER / "migrations/versions"


def test_a_module_is_written_for_each_database() -> None:
    for file in FOLDER.rglob("*.py"):
        code = "\n".join(line.partition("#")[0] for line in file.read_text().splitlines())
        words = ("import sqlite3", "PRAGMA", '"sqlite', "psycopg", "pg_", '"postgresql')
        assert file.name in ALLOWED or file.parent == HINTING or not any(word in code for word in words), file


def test_the_schema_is_one_for_postgresql_too() -> None:
    tables = {
        name: str(CreateTable(table).compile(dialect=POSTGRESQL)) for name, table in schema.metadata.tables.items()
    }
    assert "seq BIGSERIAL" in tables["entries"]
    assert "seq BIGSERIAL" in tables["nodes"]
    for table in schema.metadata.tables.values():
        assert len(table.name) < 64
        for index in table.indexes:
            assert str(CreateIndex(index).compile(dialect=POSTGRESQL)).startswith("CREATE INDEX")


def test_set_filters_are_sql_for_postgresql_too() -> None:
    members = schema.entry_selectors.c
    key = schema.entries.c.seq
    for match in Match:
        condition = matches(key, members.entry, [members.type, members.value], [("a", "1"), ("b", "2")], match)
        text = str(select(key).where(condition).compile(dialect=POSTGRESQL))
        assert text.startswith("SELECT entries.seq")
        assert ("EXISTS" in text) == (match in (Match.EXACT, Match.SUBSET))
