"""PostgreSQL: where the database is a server of its own, and all of it that is PostgreSQL's own.

libpq is psycopg's. A session writes only while it holds the database's lock, an advisory lock that ends with the
session: so there is one writer, and once a new session has the lock, nothing of an earlier one is still under way.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import psycopg
from psycopg import IsolationLevel
from psycopg.conninfo import make_conninfo
from psycopg.pq import Conninfo
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from operations import logs
from operations.errors import ConfigurationError, Refused, SpireError, TemporarilyUnavailable
from server.datastore import conninfo, schema, statements
from server.datastore.backend import Settings
from server.datastore.postgres_errors import is_passing, told

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine
    from sqlalchemy.exc import DBAPIError

    Raw = psycopg.Connection[tuple[object, ...]]
    # The process at the server and when it began, because numbers of processes come again.
    _Session = tuple[object, object]

# It warns of what it does not manage on a connection that failed already, which we tell ourselves.
logging.getLogger("psycopg").setLevel(logging.ERROR)

_READERS = 4
# Seconds. A server that is started while the session of one that died lingers, waits for its end.
_PATIENCE = 30.0
_PAUSE = 0.25

# For what the connection string leaves out: a host that is gone is noticed within a quarter of a minute.
_DEFAULTS = {
    "connect_timeout": "5",
    "keepalives_idle": "5",
    "keepalives_interval": "5",
    "keepalives_count": "2",
    "tcp_user_timeout": "15000",
    "fallback_application_name": "spire-server",
}
# Of the session, unless set already. The last four end the session, and its lock, of a host that is gone.
_SESSION = {
    "lock_timeout": "5s",
    "statement_timeout": "60s",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "2",
    "tcp_user_timeout": "15s",
}
# "SPIR": other programs in the same database have locks of their own. A server in another schema is another server.
_LOCK = 0x53504952
_HOLDER = """
SELECT a.pid, coalesce(host(a.client_addr), 'a local socket'), a.backend_start::timestamptz(0)::text, a.backend_start
FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'advisory' AND l.granted
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.classid::int8 = %s AND l.objid::int8 = hashtext(current_schema())::int8 & 4294967295 AND l.objsubid = 2
"""
_TABLES = """
SELECT relname FROM pg_class
WHERE relnamespace = to_regnamespace(quote_ident(current_schema())) AND relkind IN ('r', 'p', 'v', 'm', 'f')
"""


class Postgres:
    heartbeat = 2.0

    def __init__(self, connection_string: str, settings: Settings, *, copy: bool = False) -> None:
        given = {**dict(settings.tls), **conninfo.parse(connection_string)}
        known = {option.keyword.decode() for option in Conninfo.get_defaults()}
        made = conninfo.for_libpq(given, known, os.environ, writes=not copy)
        self._conninfo = make_conninfo("", **{**_DEFAULTS, **made, "client_encoding": "UTF8"})
        self.where = conninfo.place(made)
        self.readers = min(_READERS, settings.max_connections - 1) if settings.max_connections else _READERS
        self._disposed = threading.Event()
        # The writer's session, from the moment it has the lock until it is used.
        self._held: Raw | None = None
        self._session: _Session | None = None
        self._writer = self._engine(self._writing, settings)
        self._reader = self._engine(self._reading, settings)
        self._migrating = self._engine(self._altering, settings)
        copied = dataclasses.replace(settings, replica="")
        self.replica: Postgres | None = Postgres(settings.replica, copied, copy=True) if settings.replica else None

    def identify(self) -> None:
        try:
            self._held = self._locked(_PATIENCE)
            self._check(self._held)
        except psycopg.Error as error:
            raise told(error, self.where) from error
        _tell_of(self._held, read_only=False)
        if self.replica is not None:
            self.replica.look()

    def look(self) -> None:
        """Make sure that a copy can be read. Raises what `translate` says."""
        try:
            with self._open() as connection:
                _tell_of(connection, read_only=True)
        except psycopg.Error as error:
            raise told(error, self.where) from error

    def connect(self, *, writer: bool) -> Connection:
        return (self._writer if writer else self._reader).connect()

    def connect_to_migrate(self) -> Connection:
        return self._migrating.connect()

    def socket(self, connection: Connection) -> socket.socket:
        raw = cast("Raw", connection.connection.dbapi_connection)
        return socket.socket(fileno=os.dup(raw.fileno()))

    def translate(self, error: DBAPIError) -> SpireError:
        return told(error.orig or error, self.where)

    def passing(self, error: DBAPIError) -> bool:
        return is_passing(error.orig)

    def position(self, primary: Connection) -> str:
        return str(primary.exec_driver_sql("SELECT pg_current_wal_lsn()::text").scalar_one())

    def reached(self, copy: Connection, position: str) -> bool:
        # None where it is no standby: nobody knows how far it is.
        query = "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn"
        return copy.exec_driver_sql(query, (position,)).scalar_one() is True

    def dispose(self) -> None:
        self._disposed.set()
        held, self._held = self._held, None
        if held is not None:
            held.close()

    def _engine(self, opened: Callable[[], Raw], settings: Settings) -> Engine:
        # The type that it would look for in the database is used by no table of ours.
        engine = create_engine(
            "postgresql+psycopg://", creator=opened, poolclass=NullPool, use_native_hstore=False, hide_parameters=True
        )
        statements.log_to(engine, settings.log_statement)
        return engine

    def _writing(self) -> Raw:
        connection, self._held = self._held, None
        if connection is None:
            connection = self._locked(0)
        return _transactional(connection, read_only=False)

    def _reading(self) -> Raw:
        return _transactional(self._open(), read_only=True)

    def _altering(self) -> Raw:
        connection = self._open()
        # It takes as long as it takes.
        connection.execute("SET statement_timeout = 0")
        return _transactional(connection, read_only=False)

    def _open(self) -> Raw:
        connection = psycopg.connect(self._conninfo, autocommit=True)
        try:
            self._set_up(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _set_up(self, connection: Raw) -> None:
        # What the connection string, the user or the database sets already, stays.
        connection.execute(
            "SELECT set_config(name, value, false) FROM unnest(%s::text[], %s::text[]) AS wanted (name, value)"
            " JOIN pg_settings USING (name) WHERE source NOT IN ('client', 'user', 'database', 'database user')",
            (list(_SESSION), list(_SESSION.values())),
        )
        # One schema, so that the lock, which is the schema's, covers every table that is found.
        row = connection.execute(
            "SELECT current_setting('server_encoding'), current_schema() IS NULL,"
            " set_config('search_path', coalesce(quote_ident(current_schema()), ''), false),"
            " set_config('synchronous_commit',"
            "   CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on'"
            "   ELSE current_setting('synchronous_commit') END, false)"
        ).fetchone()
        encoding, homeless = (row or ("", True))[:2]
        if encoding != "UTF8":
            raise ConfigurationError(
                f"the database {self.where} is encoded as {encoding}: create one with ENCODING 'UTF8'"
            )
        if homeless:
            raise ConfigurationError(
                f"the database {self.where} has no schema that its search_path names: create it, or remove search_path"
            )

    def _locked(self, patience: float) -> Raw:
        """A session that holds the lock. Raises Refused where another server keeps it for longer than `patience`."""
        connection = self._open()
        try:
            end = time.monotonic() + patience
            told_of = False
            while not _try_lock(connection):
                session, holder = _holder(connection)
                if session is not None and session == self._session:
                    # An earlier one of ours, whose connection was lost, and which the server still keeps.
                    connection.execute("SELECT pg_terminate_backend(%s)", (session[0],))
                    end = max(end, time.monotonic() + 10 * _PAUSE)
                    self._session = None
                elif time.monotonic() > end:
                    raise self._taken(holder, starting=patience > 0)
                elif not told_of:
                    told_of = True
                    logs.get("sql").warning(
                        "The database is in use by another server; waiting for its end",
                        seconds=int(patience),
                        holder=holder,
                    )
                if self._disposed.wait(_PAUSE):
                    raise TemporarilyUnavailable("the datastore is closed")
            self._session, _ = _holder(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _taken(self, holder: str, *, starting: bool) -> SpireError:
        if not starting:
            return TemporarilyUnavailable(f"the database {self.where} is in use by another server ({holder})")
        return Refused(
            f"the database {self.where} is in use by another server ({holder}):"
            " stop it, or give this one its own database or schema"
        )

    def _check(self, connection: Raw) -> None:
        tables = {str(name) for (name,) in connection.execute(_TABLES)}
        ours = set(schema.metadata.tables)
        if "alembic_version" in tables and ours & tables:
            return
        if "registered_entries" in tables:
            made_by = "the Go SPIRE server"
        elif tables & (ours | {"alembic_version"}):
            made_by = "another program"
        else:
            return
        raise ConfigurationError(
            f"the tables of the database {self.where} were made by {made_by} and cannot be used;"
            " they were left as they are: give this server its own database, or a schema by search_path"
        )


def _transactional(connection: Raw, *, read_only: bool) -> Raw:
    """Transactions that each see one moment, as on SQLite, and of which a writing one fails rather than lose a change
    that another session made meanwhile."""
    connection.autocommit = False
    connection.isolation_level = IsolationLevel.REPEATABLE_READ
    # None leaves it to the server: a standby would refuse even to be asked.
    connection.read_only = True if read_only else None
    return connection


def _tell_of(connection: Raw, *, read_only: bool) -> None:
    version = connection.info.parameter_status("server_version")
    logs.get("sql").info("Connected to SQL database", type="postgres", version=version, read_only=read_only)


def _try_lock(connection: Raw) -> bool:
    row = connection.execute("SELECT pg_try_advisory_lock(%s, hashtext(current_schema()))", (_LOCK,)).fetchone()
    return row is not None and row[0] is True


def _holder(connection: Raw) -> tuple[_Session | None, str]:
    """The session that has the lock, and words about it."""
    row = connection.execute(_HOLDER, (_LOCK,)).fetchone()
    if row is None:
        return None, "already gone"
    pid, address, since, exactly = row
    return (pid, exactly), f"process {pid} of {address}, since {since}"
