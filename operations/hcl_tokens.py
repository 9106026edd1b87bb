"""The words of HCL 1, the language of SPIRE's configuration files, and of its JSON form.

HCL 1 has no grammar but its reference implementation; what that takes and refuses is what is taken and refused here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from operations.errors import ConfigurationError

_BLANK = re.compile(r"(?:[ \t\r\n]+|#[^\n]*|//[^\n]*|/\*.*?\*/)+", re.DOTALL)
_WORD = re.compile(r"[^\W\d][\w.\-]*")
_NUMBER = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?|(\.[0-9]+)([eE][+-]?[0-9]+)?)")
_HEREDOC = re.compile(r"<<(-?)(\w+)\n")
_PLAIN_STRING = re.compile(r'"[^"\\\n$]*"')
_ESCAPE = re.compile(r'\\(?:([abfnrtv\\"])|([0-7]{3})|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8}))')
_SHORT_ESCAPES = dict(zip('abfnrtv\\"', '\a\b\f\n\r\t\v\\"', strict=True))


class Kind(Enum):
    """Kinds of tokens; the values are their names in messages."""

    WORD = "a name"
    STRING = "a string"
    NUMBER = "a number"
    BOOLEAN = "true or false"
    NULL = "null"
    PUNCTUATION = "punctuation"
    END = "the end of the file"


class Integer(int):
    """An integer that remembers its notation: 0644 is 420, and still "0644" where a text is wanted."""

    text: str

    def __new__(cls, text: str) -> Integer:
        sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text)
        octal = len(digits) > 1 and digits[0] == "0" and digits[1] not in "xX"
        number = super().__new__(cls, sign * int(digits, 8 if octal else 0))
        number.text = text
        return number


@dataclass(frozen=True, slots=True)
class Token:
    """`value` is what a literal stands for; `start` and `end` are offsets into the text; lines count from 1."""

    kind: Kind
    value: str | Integer | float | bool
    line: int
    start: int
    end: int

    def is_mark(self, mark: str) -> bool:
        return self.kind is Kind.PUNCTUATION and self.value == mark

    def __str__(self) -> str:
        return f'"{self.value}"' if self.kind in (Kind.PUNCTUATION, Kind.WORD) else self.kind.value


class Scanner:
    """Splits a text into tokens, without blanks and comments. `json_form` takes JSON's strings, `:` and null."""

    def __init__(self, text: str, file: str, *, json_form: bool) -> None:
        self._text = text
        self._file = file
        self._json_form = json_form
        self._line = 1
        self._counted = 0

    def tokens(self) -> Iterator[Token]:
        """Every token; the last has the kind END. Raises ConfigurationError."""
        position = 0
        while True:
            blank = _BLANK.match(self._text, position)
            if blank is not None:
                position = blank.end()
            token = self._token(position)
            yield token
            if token.kind is Kind.END:
                return
            position = token.end

    def _token(self, start: int) -> Token:
        self._line += self._text.count("\n", self._counted, start)
        self._counted = start
        char = self._text[start : start + 1]
        if not char:
            return Token(Kind.END, "", self._line, start, start)
        if char in "{}[],=" or (char == ":" and self._json_form):
            return Token(Kind.PUNCTUATION, char, self._line, start, start + 1)
        if char == '"':
            return self._string(start)
        if word := _WORD.match(self._text, start):
            return self._word(word[0], start)
        if number := _NUMBER.match(self._text, start):
            return self._number(number, start)
        if char == "<":
            return self._heredoc(start)
        if self._text.startswith("/*", start):
            raise self._error("the comment is not closed: end it with */")
        raise self._error(f"unexpected character {char!r}")

    def _word(self, word: str, start: int) -> Token:
        end = start + len(word)
        if word in ("true", "false"):
            return Token(Kind.BOOLEAN, word == "true", self._line, start, end)
        if word == "null" and self._json_form:
            return Token(Kind.NULL, "", self._line, start, end)
        return Token(Kind.WORD, word, self._line, start, end)

    def _number(self, match: re.Match[str], start: int) -> Token:
        text = match[0]
        try:
            value = float(text) if any(match.groups()) else Integer(text)
        except ValueError as error:
            raise self._error(f"{text} is no octal number: leave out the leading 0 for a decimal one") from error
        return Token(Kind.NUMBER, value, self._line, start, match.end())

    def _string(self, start: int) -> Token:
        plain = _PLAIN_STRING.match(self._text, start)
        if plain is not None:
            return Token(Kind.STRING, plain[0][1:-1], self._line, start, plain.end())
        if self._json_form:
            return self._json_string(start)
        parts: list[str] = []
        position = start + 1
        while True:
            char = self._text[position : position + 1]
            if char in ("", "\n"):
                raise self._error("the string is not closed on its line")
            if char == '"':
                return Token(Kind.STRING, "".join(parts), self._line, start, position + 1)
            if self._text.startswith("${", position):
                end = self._interpolation_end(position)
                parts.append(self._text[position:end])
            elif char == "\\":
                part, end = self._escape(position)
                parts.append(part)
            else:
                parts.append(char)
                end = position + 1
            position = end

    def _json_string(self, start: int) -> Token:
        try:
            value, end = json.JSONDecoder().raw_decode(self._text, start)
        except json.JSONDecodeError as error:
            raise self._error(f"the string is not JSON: {error.msg}") from error
        return Token(Kind.STRING, str(value), self._line, start, end)

    def _interpolation_end(self, start: int) -> int:
        """`${…}` is plain text: SPIRE has no expressions. Quotes and line ends inside belong to it."""
        braces = 1
        position = start + 2
        while braces:
            char = self._text[position : position + 1]
            if not char:
                raise self._error("a ${ in the string is not closed with }")
            braces += {"{": 1, "}": -1}.get(char, 0)
            position += 1
        return position

    def _escape(self, start: int) -> tuple[str, int]:
        match = _ESCAPE.match(self._text, start)
        if match is None:
            raise self._error(f"illegal escape {self._text[start : start + 2]!r}: write \\\\ for a backslash")
        short, octal, *hexadecimal = match.groups()
        if short:
            return _SHORT_ESCAPES[short], match.end()
        point = int(octal, 8) if octal else int(next(digits for digits in hexadecimal if digits), 16)
        if point > 0x10FFFF or 0xD800 <= point < 0xE000:
            raise self._error(f"{match[0]} is no character")
        return chr(point), match.end()

    def _heredoc(self, start: int) -> Token:
        match = _HEREDOC.match(self._text, start)
        if match is None:
            raise self._error("a text block starts with << or <<-, a name and the end of the line")
        anchor = re.compile(rf"^([^\S\n]*){match[2]}\r*(?:\n|\Z)", re.MULTILINE)
        last = anchor.search(self._text, match.end())
        if last is None:
            raise self._error(f"the text block is not closed with a line {match[2]}")
        body, margin = self._text[match.end() : last.start()], last[1]
        value = _unindented(body, margin) if match[1] else body + margin
        return Token(Kind.STRING, value, self._line, start, last.end())

    def _error(self, reason: str) -> ConfigurationError:
        return ConfigurationError(reason, file=self._file, line=self._line)


def _unindented(body: str, margin: str) -> str:
    lines = body.split("\n")[:-1]
    if not all(line.startswith(margin) for line in lines):
        return body
    return "".join(f"{line[len(margin) :]}\n" for line in lines)
