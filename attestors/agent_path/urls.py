"""sprig's functions of URLs."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote, quote_plus, unquote, urlsplit, urlunsplit

from attestors.agent_path.builtins import print_
from attestors.agent_path.values import Value, kind_of
from operations.errors import InvalidArgument

_PARTS = ("scheme", "host", "hostname", "path", "query", "opaque", "fragment", "userinfo")


def query(*values: Value) -> str:
    """Escaped for the query of a URL."""
    return quote_plus(print_(*values))


def parse(url: str) -> Mapping[str, Value]:
    """Its parts by name."""
    try:
        parts = urlsplit(url)
        hostname = parts.netloc.rpartition("@")[2]
        hostname = hostname[1 : hostname.index("]")] if hostname.startswith("[") else hostname.partition(":")[0]
    except ValueError as error:
        raise InvalidArgument(f"unable to parse url: {error}") from error
    userinfo, _, host = parts.netloc.rpartition("@")
    opaque = bool(parts.scheme) and not parts.netloc and not parts.path.startswith("/")
    return {
        "scheme": parts.scheme,
        "host": host,
        "hostname": hostname,
        "path": "" if opaque else unquote(parts.path),
        "query": parts.query,
        "opaque": parts.path if opaque else "",
        "fragment": unquote(parts.fragment),
        "userinfo": userinfo,
    }


def join(parts: Mapping[str, Value]) -> str:
    """A URL of the parts that `parse` gives."""
    for name in _PARTS:
        if not isinstance(parts.get(name, ""), str):
            raise InvalidArgument(f"urlJoin: {name} must be a string, not a {kind_of(parts[name])}")
    scheme, host, _, path, question, opaque, fragment, userinfo = (str(parts.get(name, "")) for name in _PARTS)
    if opaque:
        made = f"{scheme}:{opaque}" if scheme else opaque
        made += f"?{question}" if question else ""
        return made + (f"#{quote(fragment)}" if fragment else "")
    netloc = f"{userinfo}@{host}" if userinfo else host
    escaped = quote(path, safe="/$&+,:;=@!'()*")
    return urlunsplit((scheme, netloc, escaped, question, quote(fragment, safe="/$&+,:;=@!'()*?")))
