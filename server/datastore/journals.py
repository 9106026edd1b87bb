"""CA journals: the statements. A journal is opaque here; each server that shares the database has its own."""

from __future__ import annotations

from sqlalchemy import Connection, delete, insert, select, update

from server.datastore import schema

_journals = schema.ca_journals


def fetch(connection: Connection, server: str) -> bytes | None:
    return connection.scalar(select(_journals.c.data).where(_journals.c.server == server))


def put(connection: Connection, server: str, data: bytes) -> None:
    changed = connection.execute(update(_journals).where(_journals.c.server == server).values(data=data))
    if not changed.rowcount:
        connection.execute(insert(_journals).values(server=server, data=data))


def remove(connection: Connection, server: str) -> None:
    connection.execute(delete(_journals).where(_journals.c.server == server))
