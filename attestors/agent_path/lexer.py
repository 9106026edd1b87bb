"""The words of a template: texts between actions, and the tokens of each action."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

from operations.errors import InvalidArgument
from operations.quoting import quote

_OPEN, _CLOSE = "{{", "}}"
_SPACE = " \t\r\n"
_TRIM_AFTER = re.compile(r"[ \t\r\n]-}}")


class Kind(Enum):
    SPACE = auto()
    STRING = auto()
    RAW = auto()
    CHARACTER = auto()
    NUMBER = auto()
    FIELD = auto()
    DOT = auto()
    VARIABLE = auto()
    WORD = auto()
    SIGN = auto()


@dataclass(frozen=True, slots=True)
class Token:
    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class RawText:
    text: str


@dataclass(frozen=True, slots=True)
class RawAction:
    tokens: tuple[Token, ...]


_TOKENS = re.compile(
    r"""(?P<SPACE>[ \t\r\n]+)
    |(?P<STRING>"(?:[^"\\\n]|\\.)*")
    |(?P<RAW>`[^`]*`)
    |(?P<CHARACTER>'(?:[^'\\\n]|\\.)+')
    |(?P<NUMBER>[+-]?(?:0[xXoObB])?[0-9][0-9A-Za-z_]*(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)
    |(?P<FIELD>\.[^\W\d]\w*)
    |(?P<DOT>\.)
    |(?P<VARIABLE>\$\w*)
    |(?P<WORD>[^\W\d]\w*)
    |(?P<SIGN>:=|[=|(),])""",
    re.VERBOSE,
)


def lex(text: str) -> Iterator[RawText | RawAction]:
    """Raises InvalidArgument."""
    position, trim = 0, False
    while True:
        begin = text.find(_OPEN, position)
        piece = text[position:begin] if begin >= 0 else text[position:]
        piece = piece.lstrip(_SPACE) if trim else piece
        if begin < 0:
            yield RawText(piece)
            return
        begin += len(_OPEN)
        if text[begin : begin + 1] == "-" and text[begin + 1 : begin + 2] in tuple(_SPACE):
            piece, begin = piece.rstrip(_SPACE), begin + 2
        yield RawText(piece)
        if text.startswith("/*", begin):
            position, trim = _comment(text, begin)
            continue
        tokens, position, trim = _action(text, begin)
        yield RawAction(tuple(tokens))


def _comment(text: str, begin: int) -> tuple[int, bool]:
    end = text.find("*/", begin)
    if end < 0:
        raise InvalidArgument("unclosed comment")
    end += 2
    if _TRIM_AFTER.match(text, end):
        return end + 4, True
    if text.startswith(_CLOSE, end):
        return end + len(_CLOSE), False
    raise InvalidArgument("comment ends before closing delimiter")


def _action(text: str, position: int) -> tuple[list[Token], int, bool]:
    tokens: list[Token] = []
    while True:
        if _TRIM_AFTER.match(text, position):
            return tokens, position + 4, True
        if text.startswith(_CLOSE, position):
            return tokens, position + len(_CLOSE), False
        found = _TOKENS.match(text, position)
        if found is None or found.lastgroup is None:
            raise InvalidArgument(_fault(text, position))
        tokens.append(Token(Kind[found.lastgroup], found.group()))
        position = found.end()


def _fault(text: str, position: int) -> str:
    if position >= len(text):
        return "unclosed action: }} is missing"
    character = text[position]
    if character in "\"`'":
        return "unterminated quoted string"
    return f"unexpected {quote(character)} in action"
