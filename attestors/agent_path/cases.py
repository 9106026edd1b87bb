"""Upper and lower case, and names written in one case or the other: by sprig's rules, character by character."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from enum import Enum, auto

SPACES = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
"""Unicode's White_Space; Python's isspace has more."""

_CONNECTORS = re.compile(f"([-_{SPACES}]+)")


def upper(text: str) -> str:
    return _each(str.upper, text)


def lower(text: str) -> str:
    return _each(str.lower, text)


def title(text: str) -> str:
    """Each word with a capital; letters, digits and underscores make words."""
    made, before = "", " "
    for character in text:
        made += character if _is_inside(before) else _each(str.title, character)
        before = character
    return made


def untitle(text: str) -> str:
    """Each word, as spaces part them, without its capital."""
    made, before = "", " "
    for character in text:
        made += lower(character) if before in SPACES and character not in SPACES else character
        before = character
    return made


def swap_case(text: str) -> str:
    """A small letter that begins a word becomes a title one."""
    made, begins = "", True
    for character in text:
        if character.isupper() or character.istitle():
            made, begins = made + lower(character), False
        elif character.islower():
            made, begins = made + _each(str.title if begins else str.upper, character), False
        else:
            made, begins = made + character, character in SPACES
    return made


def camel_case(text: str) -> str:
    """`http_server` becomes `HttpServer`. Of several connectors between words all but one stay."""
    parts = _CONNECTORS.split(text)
    made = ""
    for position, part in enumerate(parts):
        if position % 2 == 0:
            made += _capitalised(part)
        else:
            outside = not parts[position - 1] or not parts[position + 1]
            made += part if outside else part[:-1]
    return made


def _capitalised(word: str) -> str:
    """With a capital first; of capitals that follow one at once only the first stays one."""
    if not word:
        return ""
    tail = word[1:]
    if word[0].isupper():
        end = next((place for place, character in enumerate(tail) if not character.isupper()), len(tail))
        tail = lower(tail[:end]) + tail[end:]
    return upper(word[0]) + tail


class _Word(Enum):
    NUMBER = auto()
    UPPER = auto()
    LOWER = auto()
    CONNECTOR = auto()
    PUNCTUATION = auto()
    OTHER = auto()


_APART = (_Word.CONNECTOR, _Word.PUNCTUATION)


def separated(text: str, connector: str) -> str:
    """`HTTPServer2xx` becomes `http_server_2xx`, with the connector between words."""
    made, before = "", _Word.CONNECTOR
    for kind, word in _joined(list(_words(text))):
        if made and kind not in _APART and before not in _APART:
            made += connector
        made += connector * len(word) if kind is _Word.CONNECTOR else lower(word) if kind is _Word.UPPER else word
        before = kind
    return made


def _joined(words: list[tuple[_Word, str]]) -> Iterator[tuple[_Word, str]]:
    """Numbers belong to the word before, or to small letters that follow."""
    kinds = [kind for kind, _ in words] + [_Word.OTHER, _Word.OTHER]
    at = 0
    while at < len(words):
        kind, begin = kinds[at], at
        at += 1
        if kind is _Word.NUMBER:
            while kinds[at] in (_Word.LOWER, _Word.NUMBER):
                at += 1
        elif kind not in _APART and kinds[at] is _Word.NUMBER and kinds[at + 1] is not _Word.LOWER:
            at += 1
        yield kind, "".join(word for _, word in words[begin:at])


def _words(text: str) -> Iterator[tuple[_Word, str]]:
    at = 0
    while at < len(text):
        kind = _kind(text[at])
        end = at + 1
        if kind is _Word.UPPER:
            end = _end_of_capitals(text, at)
        else:
            while end < len(text) and _kind(text[end]) is kind:
                end += 1
        yield kind, text[at:end]
        at = end


def _end_of_capitals(text: str, begin: int) -> int:
    """`HTTP` of `HTTPServer`, `Server` of `Server1`."""
    end = begin + 1
    while end < len(text) and _kind(text[end]) is _Word.UPPER:
        end += 1
    small_follows = end < len(text) and _kind(text[end]) is _Word.LOWER
    if end - begin > 1:
        return end - 1 if small_follows else end
    while end < len(text) and _kind(text[end]) is _Word.LOWER:
        end += 1
    return end


def _kind(character: str) -> _Word:
    if character in "-_" or character in SPACES:
        return _Word.CONNECTOR
    if character.isupper():
        return _Word.UPPER
    if character.isalpha():
        return _Word.LOWER
    if character.isnumeric():
        return _Word.NUMBER
    return _Word.PUNCTUATION if _is_punctuation(character) else _Word.OTHER


def _is_punctuation(character: str) -> bool:
    import unicodedata

    return unicodedata.category(character).startswith("P")


def _is_inside(character: str) -> bool:
    """Whether a word goes on behind this character."""
    if character.isascii():
        return character.isalnum() or character == "_"
    return character.isalnum() or character not in SPACES


def _each(change: Callable[[str], str], text: str) -> str:
    """Characters one by one, none of which becomes two."""
    return "".join(made if len(made := change(character)) == 1 else character for character in text)
