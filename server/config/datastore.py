"""The configuration of the DataStore "sql"."""

from __future__ import annotations

from datetime import timedelta

from operations import duration
from operations.errors import ConfigurationError
from operations.hcl import Body
from operations.quoting import quote
from operations.sections import NOT_AVAILABLE, Section

_KINDS = ("sqlite3", "postgres")
_CLOUD = ("aws_postgres", "aws_mysql")


class DataStoreConfiguration(Section, frozen=True, kw_only=True):
    """Keys as in SPIRE. `database_type` is a name, or a block for the databases of AWS.

    Limits of connections, a read-only copy, and what concerns TLS to a database have no meaning for SQLite and may
    stand.
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
        if self.kind not in _KINDS:
            raise ConfigurationError(_unknown(self.kind))
        self.lifetime()
        if self.kind == "sqlite3":
            if not self.connection_string:
                raise ConfigurationError("connection_string must be set: it is the path of the database file")
            self.sqlite_path()
            return
        if not self.connection_string:
            raise ConfigurationError('connection_string must be set: for example "dbname=spire user=spire host=db"')
        # Only here, so that SQLite does without.
        from server.datastore import conninfo

        conninfo.parse(self.connection_string)
        conninfo.parse(self.ro_connection_string)
        if bool(self.client_cert_path) != bool(self.client_key_path):
            raise ConfigurationError("client_cert_path and client_key_path go together: set both, or neither")

    @property
    def kind(self) -> str:
        """The name of the database's kind; of a block, its name."""
        kind = self.database_type
        return kind if isinstance(kind, str) else ", ".join(block.type for block in kind.blocks)

    def lifetime(self) -> timedelta:
        """How old a connection may grow; 0 means without limit."""
        text = self.conn_max_lifetime
        try:
            return max(duration.parse(text), timedelta()) if text is not None else timedelta()
        except ValueError as error:
            raise ConfigurationError(f"failed to parse conn_max_lifetime {quote(text or '')}: {error}") from error

    def tls(self) -> tuple[tuple[str, str], ...]:
        """The files for TLS, under libpq's names. SPIRE reads them for MySQL only."""
        files = {"sslrootcert": self.root_ca_path, "sslcert": self.client_cert_path, "sslkey": self.client_key_path}
        return tuple((name, path) for name, path in files.items() if path)

    def sqlite_path(self) -> str:
        """The database's file. `file:PATH?options` is a path too; the options are ours to choose."""
        path = self.connection_string.removeprefix("file:").split("?", 1)[0]
        if not path or ":memory:" in path or "mode=memory" in self.connection_string:
            raise ConfigurationError("connection_string must name a file: databases in memory lose every entry")
        return path


def _unknown(kind: str) -> str:
    if not kind:
        return "database_type must be set: use sqlite3 or postgres"
    if kind == "mysql":
        return f"database_type {quote(kind)} {NOT_AVAILABLE}: use sqlite3 or postgres"
    if kind in _CLOUD:
        return f'database_type {quote(kind)} {NOT_AVAILABLE}: use "postgres" with a password or a client certificate'
    return f"unsupported database_type: {quote(kind)}: use sqlite3 or postgres"
