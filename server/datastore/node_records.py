"""What node attestors remember of nodes: the statements. A record is opaque here, and lasts as long as its node."""

from __future__ import annotations

from sqlalchemy import Connection, delete, insert, select, update

from server.datastore import schema

_records = schema.node_records


def fetch(connection: Connection, spiffe_id: str) -> bytes | None:
    return connection.scalar(select(_records.c.data).where(_records.c.spiffe_id == spiffe_id))


def put(connection: Connection, spiffe_id: str, data: bytes) -> bool:
    """Replace the record of a node; whether there is such a node."""
    nodes = schema.nodes.c
    if connection.scalar(select(nodes.seq).where(nodes.spiffe_id == spiffe_id)) is None:
        return False
    changed = connection.execute(update(_records).where(_records.c.spiffe_id == spiffe_id).values(data=data))
    if not changed.rowcount:
        connection.execute(insert(_records).values(spiffe_id=spiffe_id, data=data))
    return True


def remove(connection: Connection, spiffe_ids: list[str]) -> None:
    connection.execute(delete(_records).where(_records.c.spiffe_id.in_(spiffe_ids)))
