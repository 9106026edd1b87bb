"""Set filters as SQL: rows whose set of members matches a given set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Column, ColumnElement, and_, exists, func, select, tuple_

from server.datastore.records import Match


def matches(
    key: Column[Any],
    member_key: Column[Any],
    members: Sequence[Column[Any]],
    wanted: Sequence[tuple[str, ...]],
    match: Match,
) -> ColumnElement[bool]:
    """Whether the rows of `member_key`'s table that belong to `key` match `wanted`, which has no duplicates.

    A row's members are distinct, so counting them is enough.
    """
    within = members[0].in_([value for (value,) in wanted]) if len(members) == 1 else tuple_(*members).in_(wanted)
    outside = ~exists(select(member_key).where(member_key == key, ~within))
    some = key.in_(select(member_key).where(within))
    every = key.in_(select(member_key).where(within).group_by(member_key).having(func.count() == len(wanted)))
    match match:
        case Match.ANY:
            return some
        case Match.SUBSET:
            return and_(some, outside)
        case Match.SUPERSET:
            return every
        case Match.EXACT:
            return and_(every, outside)
