"""sprig's functions of regular expressions, by RE2: Go's syntax, and time linear in the text that a node brings.

The library is loaded by templates that use these functions only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

from operations.errors import InvalidArgument
from operations.quoting import quote

if TYPE_CHECKING:
    import re2

_SPECIAL = frozenset("\\.+*?()|[]{}^$")
_REFERENCE = re.compile(r"\$(?:\$|(?P<plain>\w+)|\{(?P<braced>\w+)\})", re.ASCII)


def match(pattern: str, text: str) -> bool:
    return compiled(pattern).search(text) is not None


def find(pattern: str, text: str) -> str:
    found = compiled(pattern).search(text)
    return "" if found is None else _group(found, 0)


def find_all(pattern: str, text: str, most: int) -> list[str]:
    """Up to `most` matches, all for a negative number."""
    found = [_group(each, 0) for each in _matches(compiled(pattern), text)]
    return found if most < 0 else found[:most]


def replace_all(pattern: str, text: str, replacement: str) -> str:
    """`$1`, `$name` and `${name}` stand for groups, `$$` for a dollar."""

    def expanded(found: re2.Match) -> str:
        return _REFERENCE.sub(lambda reference: _referenced(found, reference), replacement)

    return _replaced(compiled(pattern), text, expanded)


def replace_all_literal(pattern: str, text: str, replacement: str) -> str:
    return _replaced(compiled(pattern), text, lambda _: replacement)


def split(pattern: str, text: str, most: int) -> list[str]:
    """What stands between matches: at most that many parts, all for a negative number."""
    if most == 0:
        return []
    if pattern and not text:
        return [""]
    parts: list[str] = []
    begin = 0
    for found in _matches(compiled(pattern), text):
        if most > 0 and len(parts) == most - 1:
            break
        if found.end() == 0:
            continue
        parts.append(text[begin : found.start()])
        begin = found.end()
    if begin != len(text) or not parts or compiled(pattern).search("") is None:
        parts.append(text[begin:])
    return parts


def quote_meta(text: str) -> str:
    return "".join(f"\\{each}" if each in _SPECIAL else each for each in text)


@lru_cache(maxsize=64)
def compiled(pattern: str) -> re2.Pattern:
    """Raises InvalidArgument."""
    import re2

    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        raise InvalidArgument(f"regular expression {quote(pattern)} cannot be used: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    reason = error.args[0] if error.args else error
    return reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)


def _matches(pattern: re2.Pattern, text: str) -> Iterator[re2.Match]:
    """Go's: an empty match right behind another match does not count."""
    end = -1
    for found in pattern.finditer(text):
        if found.start() == found.end() == end:
            continue
        end = found.end()
        yield found


def _replaced(pattern: re2.Pattern, text: str, replacement: Callable[[re2.Match], str]) -> str:
    parts: list[str] = []
    begin = 0
    for found in _matches(pattern, text):
        parts += (text[begin : found.start()], replacement(found))
        begin = found.end()
    return "".join((*parts, text[begin:]))


def _referenced(found: re2.Match, reference: re.Match[str]) -> str:
    name = reference["plain"] or reference["braced"]
    if name is None:
        return "$"
    try:
        return _group(found, int(name) if name.isdecimal() else name)
    except (IndexError, KeyError):
        return ""


def _group(found: re2.Match, name: int | str) -> str:
    return found.group(name) or ""
