"""Regular expressions of a policy. They are RE2's: time is linear in the text, and the text is a node's.

Python's `re` can be made to think for hours by a pattern that looks harmless and a path that was made for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from operations.errors import InvalidArgument
from operations.quoting import quote

if TYPE_CHECKING:
    import re2

PATTERN_LIMIT: Final = 16384
"""Characters of one pattern."""
TEXT_LIMIT: Final = 8192
"""Bytes of a text; a longer one, which neither a path nor a command line is, matches nothing."""
_MEMORY: Final = 16 << 20


class Patterns:
    """Patterns of which one must match the whole text. None at all match nothing."""

    __slots__ = ("_compiled", "texts")

    def __init__(self, texts: Sequence[str]) -> None:
        """Raises InvalidArgument."""
        self.texts: Final = tuple(texts)
        for text in texts:
            if len(text) > PATTERN_LIMIT:
                raise InvalidArgument(f"a pattern of {len(text)} characters: {PATTERN_LIMIT} are the most")
            _compile(text)
            _compile(f"(?:{text})")  # one that does not end, such as \\Q, would swallow the next
        self._compiled: Final = _compile("|".join(f"(?:{text})" for text in texts)) if texts else None

    def match(self, text: str) -> bool:
        if self._compiled is None:
            return False
        data = text.encode("utf-8", "backslashreplace")
        return len(data) <= TEXT_LIMIT and self._compiled.fullmatch(data) is not None


def literal(text: str) -> str:
    """A pattern for this very text."""
    return "".join(f"\\{char}" if char in _SPECIAL else char for char in text)


_SPECIAL: Final = frozenset("\\.+*?()|[]{}^$")


def _compile(text: str) -> re2.Pattern:
    import re2  # only where a policy has patterns

    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MEMORY
    try:
        return re2.compile(text.encode(), options)
    except (re2.error, UnicodeEncodeError) as error:
        reason = error.args[0] if isinstance(error, re2.error) and error.args else "it is no UTF-8 text"
        words = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        raise InvalidArgument(f"pattern {quote(text)} cannot be used: {words}") from error
