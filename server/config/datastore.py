"""The configuration of the DataStore "sql"."""

from __future__ import annotations

from collections.abc import Mapping

from operations.errors import ConfigurationError
from operations.hcl import Body
from operations.quoting import quote
from operations.sections import NOT_AVAILABLE, Section


class DataStoreConfiguration(Section, frozen=True, kw_only=True):
    """Keys as in SPIRE. `database_type` is a name, or a block for the databases of AWS.

    Limits of connections, and what concerns TLS to a database, have no meaning for SQLite and may stand.
    """

    database_type: str | Body = ""
    connection_string: str = ""
    ro_connection_string: str = ""
    root_ca_path: str = ""
    client_cert_path: str = ""
    client_key_path: str = ""
    conn_max_lifetime: str | None = None
    max_open_conns: int | None = None
    max_idle_conns: int | None = None
    disable_migration: bool = False
    log_sql: bool = False

    def __post_init__(self) -> None:
        if not self.database_type:
            raise ConfigurationError("database_type must be set: use sqlite3")
        if self.database_type != "sqlite3":
            kind = self.database_type
            name = kind if isinstance(kind, str) else ", ".join(block.type for block in kind.blocks)
            raise ConfigurationError(f"database_type {quote(name)} {NOT_AVAILABLE}: use sqlite3")
        if not self.connection_string:
            raise ConfigurationError("connection_string must be set: it is the path of the database file")
        unavailable: Mapping[str, object] = {
            "ro_connection_string": self.ro_connection_string,
            "disable_migration": self.disable_migration,
            "log_sql": self.log_sql,
        }
        for name, value in unavailable.items():
            if value:
                raise ConfigurationError(f"{name} {NOT_AVAILABLE}: remove the key")
        self.sqlite_path()

    def sqlite_path(self) -> str:
        """The database's file. `file:PATH?options` is a path too; the options are ours to choose."""
        path = self.connection_string.removeprefix("file:").split("?", 1)[0]
        if not path or ":memory:" in path or "mode=memory" in self.connection_string:
            raise ConfigurationError("connection_string must name a file: databases in memory lose every entry")
        return path
