"""What Alembic runs: the migrations, inside the transaction of the connection it was handed."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from server.datastore.schema import metadata


def run() -> None:
    connection = context.config.attributes["connection"]
    if not isinstance(connection, Connection):
        raise TypeError("migrations run on a connection of server.datastore.migrate")
    # SQLite changes most tables only by copying them (batch mode).
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
    context.run_migrations()


run()
