"""SQLite: the embedded default, and all of it that is SQLite's own.

Connection strings are those of SPIRE's DataStore "sql": a path (`./.data/datastore.sqlite3`), or a URI of SQLite
(`file:/var/lib/x.sqlite3?cache=private`, `file:test?mode=memory`).
"""

from __future__ import annotations

import os
import sqlite3
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from sqlalchemy import create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from operations.errors import (
    ConfigurationError,
    Corrupt,
    PermanentlyUnusable,
    Refused,
    SpireError,
    TemporarilyUnavailable,
)
from operations.locks import lock
from server.datastore import statements

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

# Another process, a backup for example, may hold the write lock this long (seconds).
_BUSY_TIMEOUT = 5.0
_READERS = 2


class Sqlite:
    heartbeat = None
    replica = None

    def __init__(self, connection_string: str, *, log_statement: Callable[[str], None] | None = None) -> None:
        self._log_statement = log_statement
        self._path, self._uri = _locate(connection_string)
        self.where = str(self._path) if self._path is not None else "in memory"
        self.readers = _READERS if self._path is not None else 0
        self._lock: int | None = None
        # A database in memory lasts as long as a connection to it.
        self._anchor: sqlite3.Connection | None = None
        self._writer = self._engine(writer=True)
        self._reader = self._engine(writer=False)

    def connect(self, *, writer: bool) -> Connection:
        return (self._writer if writer else self._reader).connect()

    def connect_to_migrate(self) -> Connection:
        # Tables are altered by copying and dropping them, which with foreign keys on would empty those that refer.
        return self._engine(writer=True, foreign_keys=False).connect()

    def identify(self) -> None:
        if self._path is None:
            self._anchor = self._open(writer=True)
            return
        self._lock = _locked(self._path)
        _create(self._path)
        try:
            with closing(self._open(writer=True)) as connection:
                self._check(connection)
                connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.Error as error:
            raise self._told(error) from error

    def _check(self, connection: sqlite3.Connection) -> None:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if tables and "alembic_version" not in tables:
            made_by = "the Go SPIRE server" if "registered_entries" in tables else "another program"
            raise ConfigurationError(
                f"the database {self.where} was made by {made_by} and cannot be used;"
                " it was left as it is: set connection_string to a new file"
            )
        (fault,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if fault != "ok":
            raise self._corrupt(fault.splitlines()[-1])

    def translate(self, error: DBAPIError) -> SpireError:
        return self._told(error.orig or error)

    def socket(self, connection: Connection) -> None:
        return None

    def passing(self, error: DBAPIError) -> bool:
        return False

    def _told(self, cause: BaseException) -> SpireError:
        code = getattr(cause, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        match code:
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                return self._corrupt(str(cause))
            case sqlite3.SQLITE_FULL:
                return TemporarilyUnavailable(f"no room left for the database {self.where}: free space on its disk")
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                return TemporarilyUnavailable(f"the database {self.where} is locked by another process")
            case sqlite3.SQLITE_IOERR:
                return TemporarilyUnavailable(f"the database {self.where} cannot be reached ({cause}): check its disk")
            case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
                return PermanentlyUnusable(
                    f"the database {self.where} cannot be opened for writing ({cause}):"
                    " check the file, its folder and their permissions"
                )
            case _:
                return PermanentlyUnusable(f"the database {self.where} refused a statement ({cause})")

    def dispose(self) -> None:
        if self._anchor is not None:
            self._anchor.close()
        self._writer.dispose()
        self._reader.dispose()
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def _corrupt(self, reason: str) -> Corrupt:
        return Corrupt(
            f"the database {self.where} is damaged ({reason}); it was left as it is:"
            " restore it from a backup, or move it away to start with an empty one"
        )

    def _engine(self, *, writer: bool, foreign_keys: bool = True) -> Engine:
        def opened() -> sqlite3.Connection:
            return self._open(writer=writer, foreign_keys=foreign_keys)

        engine = create_engine("sqlite+pysqlite://", creator=opened, poolclass=NullPool, hide_parameters=True)
        # sqlite3 would begin transactions only before some statements; here each begins where SQLAlchemy says.
        begin = "BEGIN IMMEDIATE" if writer else "BEGIN"

        def on_begin(connection: Connection) -> None:
            connection.exec_driver_sql(begin)

        event.listen(engine, "begin", on_begin)
        statements.log_to(engine, self._log_statement)
        return engine

    def _open(self, *, writer: bool, foreign_keys: bool = True) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._uri, uri=True, isolation_level=None, timeout=_BUSY_TIMEOUT, check_same_thread=False
        )
        pragmas = [
            f"foreign_keys = {foreign_keys:d}",
            "synchronous = FULL",
            "trusted_schema = OFF",
            "temp_store = MEMORY",
        ]
        if not writer:
            pragmas.append("query_only = ON")
        try:
            for pragma in pragmas:
                connection.execute(f"PRAGMA {pragma}")
        except sqlite3.Error:
            connection.close()
            raise
        return connection


def _locate(connection_string: str) -> tuple[Path | None, str]:
    """The file, or None for a database in memory, and the URI to open. Raises ConfigurationError."""
    if not connection_string:
        raise ConfigurationError("the datastore needs a connection_string: give the path of an SQLite database")
    if not connection_string.startswith("file:"):
        if connection_string == ":memory:":
            return None, _memory()
        path = Path(connection_string)
        return path, f"file:{quote(str(path))}"
    parts = urlsplit(connection_string)
    if parts.netloc not in ("", "localhost"):
        raise ConfigurationError(f"the connection_string {connection_string!r} names a host; write file:/path instead")
    # Options that begin with an underscore speak to the driver of the Go server; what they ask for is always on here.
    options = [(name, value) for name, value in parse_qsl(parts.query) if not name.startswith("_")]
    name = unquote(parts.path)
    if ("mode", "memory") in options or name in ("", ":memory:"):
        return None, _memory()
    if ("mode", "ro") in options or ("immutable", "1") in options:
        raise ConfigurationError(f"the connection_string {connection_string!r} is read-only; the server must write")
    query = f"?{urlencode(options)}" if options else ""
    return Path(name), f"file:{quote(name)}{query}"


def _memory() -> str:
    # Shared, so that closing one connection does not lose it; with a name of its own, so that no other server sees it.
    return f"file:spire-{uuid.uuid4()}?mode=memory&cache=shared"


def _locked(path: Path) -> int:
    """Hold the database for this server: each of two would serve from an index that lacks what the other wrote."""
    if not path.parent.is_dir():
        raise ConfigurationError(f"the folder {path.parent} of the database {path} does not exist: create it")
    try:
        return lock(path)
    except BlockingIOError as error:
        raise Refused(f"the database {path} is in use by another server: stop it, or give this one its own") from error
    except OSError as error:
        raise PermanentlyUnusable(
            f"the database {path} cannot be opened for writing ({error.strerror}):"
            " check the file, its folder and their permissions"
        ) from error


def _create(path: Path) -> None:
    """Make an empty file that only this user can read; SQLite gives its companions the same mode.

    Only before the first connection: to close a file ends all POSIX locks that the process has on it. SQLite's would
    be gone, and the next program that looks into the database would take the server's journal away on leaving.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise PermanentlyUnusable(
            f"the database {path} cannot be opened for writing ({error.strerror}): check its permissions"
        ) from error
