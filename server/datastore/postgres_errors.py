"""What went wrong in PostgreSQL, as errors of ours. Codes: PostgreSQL's documentation, appendix A.

The texts that are passed on are the server's and libpq's own; neither repeats a password.
"""

from __future__ import annotations

import re

import psycopg

from operations.errors import Corrupt, InvalidArgument, PermanentlyUnusable, SpireError, TemporarilyUnavailable

# The transaction lost to another one: serialization_failure, deadlock_detected.
_PASSING = frozenset({"40001", "40P01"})

_PERMANENT = {
    "28P01": "the database {where} refuses the password: set user and password of connection_string right",
    "28000": "the database {where} refuses this user ({reason}): check user and host, and the server's pg_hba.conf",
    "3D000": "the database {where} does not exist: create it, or set dbname of connection_string right",
    "3F000": "the database {where} lacks the schema ({reason}): create it, or set search_path right",
    "42501": "the database {where} denies a permission ({reason}): make this user the owner of database and schema",
    "42P01": "the database {where} lacks a table ({reason}): restore it from a backup",
}
_TEMPORARY = {
    "25006": "the database {where} is read-only: it is a standby, or was set so",
    "40001": "the database {where} is contended ({reason}); try again",
    "40P01": "the database {where} is contended ({reason}); try again",
    "53100": "no room left for the database {where}: free space on its disk",
    "53300": "the database {where} has no connection left: raise its max_connections, or lower max_open_conns here",
    "55P03": "the database {where} is locked by another session",
    "57014": "the database {where} did not answer in time ({reason}); try again",
}
# What a new connection is refused with, as text: libpq passes no code on.
_REFUSALS = {
    "password authentication failed": "28P01",
    "no password supplied": "28P01",
    "no pg_hba.conf entry": "28000",
    "Peer authentication failed": "28000",
    "Ident authentication failed": "28000",
    "is not permitted to log in": "28000",
    "too many connections": "53300",
    "too many clients": "53300",
    "connection slots are reserved": "53300",
    "session is read-only": "25006",
}
_MISSING = re.compile(r'FATAL: +(database|role) ".*" does not exist')
# What libpq and psycopg put around it.
_PREFIX = re.compile(r"connection (is bad|failed): ")
_HINT = "Is the server running"
# Nobody's fault but the caller's: too long, out of range, not representable; too long for an index.
_OF_THE_CALLER = ("22", "54")
_DAMAGE = "XX"


def is_passing(cause: BaseException | None) -> bool:
    return isinstance(cause, psycopg.Error) and cause.sqlstate in _PASSING


def told(cause: BaseException, where: str) -> SpireError:
    """The error in our words; `where` names the database."""
    reason = _reason(cause)
    code = (cause.sqlstate if isinstance(cause, psycopg.Error) else None) or _code_of(cause, reason)
    if code in _PERMANENT:
        return PermanentlyUnusable(_PERMANENT[code].format(where=where, reason=reason))
    if code in _TEMPORARY:
        return TemporarilyUnavailable(_TEMPORARY[code].format(where=where, reason=reason))
    if code.startswith(_OF_THE_CALLER):
        return InvalidArgument(f"the database {where} cannot keep this ({reason})")
    if code in ("XX001", "XX002"):
        return Corrupt(f"the database {where} is damaged ({reason}): restore it from a backup")
    if isinstance(cause, psycopg.OperationalError):
        return TemporarilyUnavailable(f"the database {where} cannot be reached ({reason})")
    return PermanentlyUnusable(f"the database {where} refused a statement ({reason})")


def _reason(cause: BaseException) -> str:
    """One line: the server's message without the statement, or libpq's."""
    if isinstance(cause, psycopg.Error) and cause.diag.message_primary:
        return cause.diag.message_primary
    lines = [_PREFIX.sub("", line.strip()) for line in str(cause).splitlines()]
    told = dict.fromkeys(line for line in lines if line and not line.startswith(_HINT))
    return "; ".join(list(told)[:3]) or type(cause).__name__


def _code_of(cause: BaseException, reason: str) -> str:
    if isinstance(cause, psycopg.DataError):
        # psycopg's own, of what it does not even send: a NUL in a text, for example.
        return "22000"
    if missing := _MISSING.search(reason):
        return "3D000" if missing[1] == "database" else "28000"
    return next((code for text, code in _REFUSALS.items() if text in reason), "")
