"""What differs between databases, behind one Protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from operations.errors import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.exc import DBAPIError

    from operations.errors import SpireError


class Backend(Protocol):
    """One database. `where` names it in messages, without a password."""

    where: str
    readers: int
    """How many reader threads make sense; 0 when one connection must serve all."""

    def identify(self) -> None:
        """Before anything is written: refuse a database that is damaged or that another program made."""
        ...

    def connect(self, *, writer: bool) -> Connection: ...

    def connect_to_migrate(self) -> Connection: ...

    def translate(self, error: DBAPIError) -> SpireError: ...

    def dispose(self) -> None: ...


def select(connection_string: str) -> Backend:
    """The backend for a connection string. Raises ConfigurationError."""
    scheme, colon, _ = connection_string.partition("://")
    if colon and scheme != "file":
        raise ConfigurationError(f"the datastore cannot use {scheme!r}: give the path of an SQLite database")
    from server.datastore.sqlite import Sqlite

    return Sqlite(connection_string)
