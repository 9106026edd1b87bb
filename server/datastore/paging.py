"""Pages of rows in the order of their numbers; a page token is the last number of the page before."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Select

from operations.errors import InvalidArgument

_MAX_ROW = 2**63 - 1


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


def _parse(token: str) -> int:
    if not (token.isascii() and token.isdigit() and int(token) <= _MAX_ROW):
        raise InvalidArgument(f"could not parse token {token!r}")
    return int(token)
