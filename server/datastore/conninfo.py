"""Connection strings for PostgreSQL, as SPIRE's driver reads them: `dbname=spire host=db password='a b'`, or a URL
`postgres://user:password@host:port/dbname?sslmode=verify-full`.

What is read here goes to libpq, which differs in its defaults: SPIRE's driver wants TLS and asks localhost. Names that
libpq does not know are settings of the session (`search_path`, `statement_timeout`). No error repeats a value, because
a password may be any part of a string that is not well formed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from operations.errors import ConfigurationError

_URL = re.compile(r"postgres(ql)?://", re.IGNORECASE)
# A name, and a value in quotes or without; in both a backslash takes the next character as it is.
_PAIR = re.compile(r"\s*([^\s='\\]+)\s*=\s*(?:'((?:[^'\\]|\\.)*)'|((?:[^\s'\\]|\\.)*))(?=\s|\Z)\s*", re.DOTALL)
_HOST = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(?::(\d*))?")
# They tune SPIRE's driver and mean nothing to libpq.
_OF_THE_DRIVER = frozenset({"binary_parameters", "disable_prepared_binary_result"})
_SYSTEM_ROOTS = "/etc/ssl/certs/ca-certificates.crt"

Parameters = dict[str, str]


def parse(connection_string: str) -> Parameters:
    """The parameters by name. Raises ConfigurationError."""
    given = _url(connection_string) if _URL.match(connection_string) else _pairs(connection_string)
    if given.get("sslinline", "false") != "false":
        raise ConfigurationError("connection_string: sslinline cannot be used: give the paths of files")
    port = given.get("port", "")
    if port and not all(each.isascii() and each.isdigit() and 0 < int(each) < 65536 for each in port.split(",")):
        raise ConfigurationError("connection_string: port must be a number between 1 and 65535")
    return {name: value for name, value in given.items() if name not in _OF_THE_DRIVER | {"sslinline"}}


def for_libpq(
    given: Mapping[str, str], known: Collection[str], environment: Mapping[str, str], *, writes: bool = True
) -> Parameters:
    """The parameters as libpq takes them, with the defaults of SPIRE's driver. `known` is what libpq has names for."""
    made = {name: value for name, value in given.items() if name in known}
    elsewhere = "service" in made or "PGSERVICE" in environment
    if not elsewhere and not made.keys() & {"host", "hostaddr"} and not environment.keys() & {"PGHOST", "PGHOSTADDR"}:
        made["host"] = "localhost"
    if made.get("sslrootcert") == "system":
        # libpq would look where its own build of OpenSSL has them.
        made["sslrootcert"] = _SYSTEM_ROOTS
        made.setdefault("sslmode", "verify-full")
    if not elsewhere and "PGSSLMODE" not in environment:
        made.setdefault("sslmode", "require")
    if writes and "," in made.get("host", "") + made.get("hostaddr", ""):
        # Of a primary and its standbys, the one that can be written to.
        made.setdefault("target_session_attrs", "read-write")
    settings = [f"-c {name}={_escaped(value)}" for name, value in given.items() if name not in known]
    if settings:
        made["options"] = " ".join([*filter(None, [made.get("options")]), *settings])
    return made


def place(parameters: Mapping[str, str]) -> str:
    """Which database it is, for messages: `spire on db.example.org:5432`."""
    names = (parameters.get("host") or parameters.get("hostaddr") or "").split(",")
    ports = (parameters.get("port") or "5432").split(",")
    hosts = ",".join(
        f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
        for name, port in zip(names, ports if len(ports) == len(names) else ports[:1] * len(names), strict=True)
    )
    database = parameters.get("dbname") or parameters.get("user") or parameters.get("service") or "of this user"
    return f"{database} on {hosts}" if names != [""] else database


def _pairs(text: str) -> Parameters:
    found: Parameters = {}
    position = 0
    while position < len(text):
        match = _PAIR.match(text, position)
        if match is None:
            raise ConfigurationError(
                "connection_string cannot be read: write it as name=value pairs with spaces between them, values that"
                " hold spaces in single quotes, or as a URL postgres://user:password@host:port/dbname"
            )
        name, quoted, plain = match.groups()
        found[name] = re.sub(r"\\(.)", r"\1", quoted if quoted is not None else plain, flags=re.DOTALL)
        position = match.end()
    return found


def _url(text: str) -> Parameters:
    parts = _split(text)
    user_info, _, hosts = parts.netloc.rpartition("@")
    user, _, password = user_info.partition(":")
    places = [_HOST.fullmatch(each) for each in hosts.split(",")]
    names = [unquote(place[1].strip("[]")) for place in places if place]
    ports = [place[2] or "" for place in places if place]
    if len(names) != len(places) or (any(ports) and not all(ports) and len(ports) > 1):
        raise _unreadable()
    found = {
        "user": unquote(user),
        "password": unquote(password),
        "host": ",".join(names),
        "port": ",".join(ports) if any(ports) else "",
        "dbname": unquote(parts.path.removeprefix("/")),
        **dict(parse_qsl(parts.query, keep_blank_values=True)),
    }
    return {name: value for name, value in found.items() if value}


def _split(text: str) -> SplitResult:
    try:
        parts = urlsplit(text)
    except ValueError:
        raise _unreadable() from None
    if parts.fragment:
        raise _unreadable()
    return parts


def _unreadable() -> ConfigurationError:
    return ConfigurationError(
        "connection_string is no URL of PostgreSQL: write postgres://user:password@host:port/dbname,"
        " with special characters of the password percent-encoded"
    )


def _escaped(value: str) -> str:
    """As the server splits its options: at spaces that no backslash precedes."""
    return re.sub(r"([\s\\])", r"\\\1", value)
