"""What differs between databases, behind one Protocol."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from operations.errors import ConfigurationError

if TYPE_CHECKING:
    import socket as sockets

    from sqlalchemy import Connection
    from sqlalchemy.exc import DBAPIError

    from operations.errors import SpireError

SQLITE = "sqlite3"
POSTGRES = "postgres"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Which kind of database, and how to use it. What concerns connections has no meaning for SQLite."""

    kind: str = SQLITE
    replica: str = ""
    """The connection string of a read-only copy, which answers listings."""
    tls: tuple[tuple[str, str], ...] = ()
    """Parameters of libpq for those that the connection string leaves out."""
    max_connections: int = 0
    """0 means no limit."""
    max_idle: int | None = None
    """Connections that may stay open unused; None means all."""
    max_lifetime: timedelta = timedelta()
    """How old a connection may grow; 0 means without limit."""
    migrate: bool = True
    log_statement: Callable[[str], None] | None = None


DEFAULTS = Settings()


class Backend(Protocol):
    """One database. `where` names it in messages, without a password."""

    where: str
    readers: int
    """How many reader threads make sense; 0 when one connection must serve all."""

    @property
    def heartbeat(self) -> float | None:
        """Seconds after which an idle writer looks whether its connection lives; None where it cannot be lost."""
        ...

    def identify(self) -> None:
        """Before anything is written: refuse a database that is damaged or that another program made."""
        ...

    def connect(self, *, writer: bool) -> Connection: ...

    def connect_to_migrate(self) -> Connection: ...

    def socket(self, connection: Connection) -> sockets.socket | None:
        """A handle of its own on the connection's socket, with which another thread can cut it; None without one."""
        ...

    def translate(self, error: DBAPIError) -> SpireError: ...

    def passing(self, error: DBAPIError) -> bool:
        """Whether the same transaction may go through if it is tried again at once."""
        ...

    def dispose(self) -> None: ...

    @property
    def replica(self) -> Replica | None:
        """A read-only copy that follows this database."""
        ...


class Replica(Backend, Protocol):
    """A copy that is always a little behind. Positions are opaque, and grow with every commit."""

    def position(self, primary: Connection) -> str:
        """How far the database itself is."""
        ...

    def reached(self, copy: Connection, position: str) -> bool:
        """Whether a transaction that begins on the copy from now on sees all up to there."""
        ...


def select(connection_string: str, settings: Settings = DEFAULTS) -> Backend:
    """The backend for a connection string. Raises ConfigurationError."""
    if settings.kind == POSTGRES:
        from server.datastore.postgres import Postgres

        return Postgres(connection_string, settings)
    scheme, colon, _ = connection_string.partition("://")
    if colon and scheme != "file":
        raise ConfigurationError(f"the datastore cannot use {scheme!r}: give the path of an SQLite database")
    from server.datastore.sqlite import Sqlite

    return Sqlite(connection_string, log_statement=settings.log_statement)
