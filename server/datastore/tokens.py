"""Join tokens: the statements. All run inside a transaction of the worker."""

from __future__ import annotations

from sqlalchemy import Connection, delete, insert, select

from operations.errors import AlreadyExists, InvalidArgument, NotFound
from server.datastore import schema
from server.datastore.records import JoinToken

_tokens = schema.join_tokens


def create(connection: Connection, token: JoinToken) -> None:
    """Store a new token. Raises AlreadyExists."""
    if not token.token or not token.expires_at:
        raise InvalidArgument("token and expiry are required")
    if fetch(connection, token.token) is not None:
        raise AlreadyExists("this join token exists already")
    connection.execute(insert(_tokens).values(token=token.token, expires_at=token.expires_at))


def fetch(connection: Connection, token: str) -> JoinToken | None:
    row = connection.execute(select(_tokens.c.expires_at).where(_tokens.c.token == token)).one_or_none()
    return JoinToken(token, row.expires_at) if row is not None else None


def take(connection: Connection, token: str) -> JoinToken | None:
    """Delete the token and return it, in one statement: of many callers one gets it, also of several servers."""
    row = connection.execute(
        delete(_tokens).where(_tokens.c.token == token).returning(_tokens.c.expires_at)
    ).one_or_none()
    return JoinToken(token, row.expires_at) if row is not None else None


def remove(connection: Connection, token: str) -> None:
    """Delete the token. Raises NotFound."""
    if take(connection, token) is None:
        raise NotFound("join token not found")


def prune(connection: Connection, expires_before: int) -> int:
    """Delete the tokens that expired before that time; how many they were."""
    return connection.execute(delete(_tokens).where(_tokens.c.expires_at < expires_before)).rowcount
