"""Pages of rows in the order of their numbers; a page token is the last number of the page before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from sqlalchemy import Column, Select

from operations.errors import InvalidArgument
from server.datastore.records import Page

T = TypeVar("T")

# SQLite takes 32766 parameters in a statement, PostgreSQL 65535.
_AT_ONCE = 1000
_MAX_ROW = 2**63 - 1
_MAX_DIGITS = len(str(_MAX_ROW))


def page(query: Select[Any], row: Column[int], page_size: int, page_token: str) -> Select[Any]:
    """Limit the query to a page and one row more, which tells whether there is another. Size 0 means all.

    Raises InvalidArgument for a token that no page gave.
    """
    query = query.order_by(row)
    if page_token:
        query = query.where(row > _parse(page_token))
    if page_size < 0:
        raise InvalidArgument("the page size must not be negative")
    return query.limit(page_size + 1) if page_size else query


def first_page(numbered: Sequence[tuple[int, T]], page_size: int) -> Page[T]:
    """What `page` selected, with the records' numbers, as a page."""
    shown = numbered[:page_size] if page_size else numbered
    more = len(shown) < len(numbered)
    return Page(tuple(record for _, record in shown), str(shown[-1][0]) if more else "")


def parts(values: Sequence[T]) -> Iterator[Sequence[T]]:
    """The values, as many at once as a statement takes."""
    return (values[start : start + _AT_ONCE] for start in range(0, len(values), _AT_ONCE))


def _parse(token: str) -> int:
    # The length first: Python refuses to read numbers of thousands of digits.
    if not (len(token) <= _MAX_DIGITS and token.isascii() and token.isdigit() and int(token) <= _MAX_ROW):
        raise InvalidArgument(f"could not parse token {token[:64]!r}")
    return int(token)
