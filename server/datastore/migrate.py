"""Bringing a database to the schema of this version.

A new database gets the tables at once and is stamped; Alembic is imported only when an older one must be migrated.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Column, Connection, MetaData, String, Table, insert, inspect, select

from operations.errors import ConfigurationError
from server.datastore.schema import metadata

# Oldest first; each has its file in migrations/versions.
REVISIONS = ("0001", "0002", "0003")

# Alembic's own table, in Alembic's own shape.
_version = Table("alembic_version", MetaData(), Column("version_num", String(32), primary_key=True))


def prepare(connection: Connection, where: str, *, migrate: bool = True) -> None:
    """Create the tables, or migrate them if that is allowed.

    Raises ConfigurationError for a database of a newer version, and for an older one that may not be migrated.
    """
    with connection.begin():
        if not inspect(connection).has_table(_version.name):
            metadata.create_all(connection)
            _version.create(connection)
            connection.execute(insert(_version).values(version_num=REVISIONS[-1]))
            return
        revision = connection.scalar(select(_version.c.version_num))
        if revision == REVISIONS[-1]:
            return
        if revision is not None and revision not in REVISIONS:
            raise ConfigurationError(
                f"the database {where} was made by a newer version of this server (schema {revision},"
                f" this one knows {REVISIONS[-1]}): run that version, or restore a backup made before the upgrade"
            )
        if not migrate:
            raise ConfigurationError(
                f"auto-migration must be enabled for current DB: the database {where} has schema {revision},"
                f" this version needs {REVISIONS[-1]}, and disable_migration is set; remove it for one start"
            )
        _upgrade(connection)


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, REVISIONS[-1])
