"""Registration entries out of their tables: four statements, however many entries they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, TypeVar

from sqlalchemy import Column, Connection, Select, Table, bindparam, select

from identity.selectors import Selector
from server.datastore import schema
from server.datastore.paging import parts
from server.datastore.records import Entry

T = TypeVar("T")

_row = schema.entries.c.seq
# Columns that are named and typed as the fields of Entry.
_OWN_COLUMNS = tuple(column.name for column in schema.entries.c if column is not _row)


class Reading:
    """Reads the entries whose row numbers `rows` selects (None: all), in the order of these numbers.

    Building the statements costs more than running them, so those that are needed often are built once.
    """

    def __init__(self, rows: Select[Any] | None) -> None:
        def within(query: Select[Any], row: Column[Any]) -> Select[Any]:
            return query if rows is None else query.where(row.in_(rows))

        def members(table: Table, *columns: str) -> Select[Any]:
            query = select(table.c.entry, *(table.c[name] for name in columns))
            return within(query, table.c.entry).order_by(table.c.entry, table.c.position)

        own = select(_row, *(schema.entries.c[name] for name in _OWN_COLUMNS))
        self._entries = within(own, _row).order_by(_row)
        self._selectors = members(schema.entry_selectors, "type", "value")
        self._dns_names = members(schema.entry_dns_names, "name")
        self._federations = members(schema.entry_federations, "trust_domain")

    def read(self, connection: Connection, **parameters: Any) -> list[Entry]:
        return [entry for _, entry in self.read_numbered(connection, **parameters)]

    def read_numbered(self, connection: Connection, **parameters: Any) -> list[tuple[int, Entry]]:
        """With the row number of each."""
        found = connection.execute(self._entries, parameters).all()
        if not found:
            return []

        def members(query: Select[Any], make: Callable[[Sequence[Any]], T]) -> dict[int, tuple[T, ...]]:
            rows: Sequence[Sequence[Any]] = connection.execute(query, parameters).all()
            grouped: defaultdict[int, list[T]] = defaultdict(list)
            for row in rows:
                grouped[row[0]].append(make(row))
            return {key: tuple(found) for key, found in grouped.items()}

        selectors = members(self._selectors, lambda row: Selector(row[1], row[2]))
        dns_names = members(self._dns_names, itemgetter(1))
        federations = members(self._federations, itemgetter(1))
        return [
            (
                key,
                Entry(
                    selectors=selectors.get(key, ()),
                    dns_names=dns_names.get(key, ()),
                    federates_with=federations.get(key, ()),
                    **dict(zip(_OWN_COLUMNS, columns, strict=True)),
                ),
            )
            for key, *columns in found
        ]


_BY_NUMBER = Reading(select(_row).where(_row.in_(bindparam("numbers", expanding=True))))


def chosen(connection: Connection, rows: Select[Any]) -> list[tuple[int, Entry]]:
    """The entries that `rows` selects, with their numbers: the selection runs once, not once for each table."""
    numbers: Sequence[int] = connection.scalars(rows).all()
    return [found for part in parts(numbers) for found in _BY_NUMBER.read_numbered(connection, numbers=part)]


BY_ID = Reading(select(_row).where(schema.entries.c.id.in_(bindparam("ids", expanding=True))))
EVERYTHING = Reading(None)
