"""Claims by their path, and what of their values a selector can hold. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

from operations.errors import InvalidArgument, Refused
from operations.quoting import quote

MOST_VALUES = 256
LONGEST_VALUE = 1024
"""In characters."""

Claims = Mapping[str, object]

_MISSING = object()


def require_path(path: str) -> None:
    """Raises InvalidArgument."""
    if not path or ":" in path:
        raise InvalidArgument(f"claim {quote(path)} has no place in a selector: give a path without colons")


def find(claims: Claims, path: str) -> object | None:
    """What a path leads to; None where it leads nowhere.

    Names may have dots themselves, as `kubernetes.io` does: the longest that is there is followed.
    """
    found = _find(claims, path)
    return None if found is _MISSING else found


def _find(value: object, path: str) -> object:
    if not isinstance(value, Mapping):
        return _MISSING
    members = cast(Claims, value)
    end = len(path)
    while end > 0:
        name, rest = path[:end], path[end + 1 :]
        if name in members:
            found = members[name] if not rest else _find(members[name], rest)
            if found is not _MISSING:
                return found
        end = path.rfind(".", 0, end)
    return _MISSING


def values(claims: Claims, path: str) -> list[str]:
    """The texts of a claim: one for a text, a number, true or false; one for each of a list's.

    Raises Refused for more or longer ones than an entry could have a use for.
    """
    found = [text for text in _texts(find(claims, path)) if text]
    if len(found) > MOST_VALUES or any(len(text) > LONGEST_VALUE for text in found):
        raise Refused(
            f"claim {path} has {len(found)} values, some of them long: "
            f"at most {MOST_VALUES} of {LONGEST_VALUE} characters make selectors"
        )
    return found


def _texts(value: object) -> Iterator[str]:
    match value:
        case str():
            yield value
        case bool():
            yield "true" if value else "false"
        case int():
            yield str(value)
        case list():
            for item in cast("list[object]", value):
                if not isinstance(item, list):
                    yield from _texts(item)
        case _:
            pass  # an object is none, nor a fraction: its text would not be one and the same everywhere
