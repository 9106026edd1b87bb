"""Set filters as SQL: rows whose set of members matches a given set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Column, ColumnElement, Text, and_, exists, func, literal_column, select, tuple_, union

from operations.errors import InvalidArgument
from server.datastore.records import Match
from server.datastore.schema import PREFIX

# SQLite allows 500 terms in a UNION.
_MAX_WANTED = 400


def matches(
    key: Column[Any],
    member_key: Column[Any],
    members: Sequence[Column[Any]],
    wanted: Sequence[tuple[str, ...]],
    match: Match,
) -> ColumnElement[bool]:
    """Whether the rows of `member_key`'s table that belong to `key` match `wanted`, which has no duplicates.

    One subquery for each wanted member, because that is what the databases answer from an index.
    """
    if len(wanted) > _MAX_WANTED:
        raise InvalidArgument(f"a filter may name at most {_MAX_WANTED} values, not {len(wanted)}")
    having = [
        select(member_key).where(*(_equal(column, value) for column, value in zip(members, each, strict=True)))
        for each in wanted
    ]
    outside = exists(select(member_key).where(member_key == key, ~tuple_(*members).in_(wanted)))
    match match:
        case Match.ANY:
            return key.in_(union(*having))
        case Match.SUBSET:
            return and_(key.in_(union(*having)), ~outside)
        case Match.SUPERSET:
            return and_(*(key.in_(each) for each in having))
        case Match.EXACT:
            return and_(*(key.in_(each) for each in having), ~outside)


def _equal(column: Column[Any], value: str) -> ColumnElement[bool]:
    if not isinstance(column.type, Text):
        return column == value
    # As PostgreSQL's index has it; written out, because a parameter would not be recognised.
    prefix = func.substr(column, literal_column("1"), literal_column(str(PREFIX)))
    return and_(prefix == value[:PREFIX], column == value)
