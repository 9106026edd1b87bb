"""HCL 1 as SPIRE reads it, and its JSON form: one front end for every configuration file.

HCL 2 is another language (`"server" {`, `"0" = 1`, 0644 and commas between attributes are errors there, `${x}` an
expression), so the reader is our own; it costs a start-up milliseconds. Every value knows its file and line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias, Union

from operations.errors import ConfigurationError
from operations.hcl_tokens import Integer, Kind, Scanner, Token

_DEPTH_LIMIT = 64
_SIZE_LIMIT = 16 << 20
_VARIABLE = re.compile(r"\$(?:\{([^}]*)\}|([*#$@!?\-0-9])|([A-Za-z_][A-Za-z0-9_]*))")

Value: TypeAlias = Union[str, Integer, float, bool, "Body", tuple["Value", ...]]
"""A list is a tuple; an object inside a list is a Body."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where something stands; `line` counts from 1."""

    file: str
    line: int

    def error(self, reason: str) -> ConfigurationError:
        return ConfigurationError(reason, file=self.file, line=self.line)


@dataclass(frozen=True, slots=True)
class Attribute:
    """`name = value`, where the value is no object."""

    name: str
    value: Value
    position: Position


@dataclass(frozen=True, slots=True)
class Block:
    """`type "label" … { … }`, also written `type = { … }`."""

    type: str
    labels: tuple[str, ...]
    body: Body
    position: Position

    @property
    def source(self) -> str:
        """The HCL (or JSON) text of the block's inside."""
        return self.body.source


@dataclass(frozen=True, slots=True)
class Body:
    """The inside of a block or file, in the order written. HCL compares names without regard to case."""

    items: tuple[Attribute | Block, ...]
    position: Position
    source: str = field(repr=False)

    @property
    def attributes(self) -> Mapping[str, Attribute]:
        """Attributes by name; of several with one name the last counts."""
        return {item.name: item for item in self.items if isinstance(item, Attribute)}

    @property
    def blocks(self) -> Sequence[Block]:
        return tuple(item for item in self.items if isinstance(item, Block))

    def named(self, name: str) -> Sequence[Attribute | Block]:
        """The attributes and blocks of that name."""
        return tuple(item for item in self.items if name_of(item).lower() == name.lower())

    def find(self, *path: str) -> Position:
        """Where the value of a path of names stands; that of its nearest part when it is not written down."""
        if not path:
            return self.position
        matches = self.named(path[0])
        if not matches:
            return self.position
        last = matches[-1]
        return last.body.find(*path[1:]) if isinstance(last, Block) and len(path) > 1 else last.position


def name_of(item: Attribute | Block) -> str:
    return item.name if isinstance(item, Attribute) else item.type


def load(path: str | os.PathLike[str], *, expand_env: bool = False) -> Body:
    """Read a file; `expand_env` puts environment variables in for $NAME and ${NAME}, and $ for $$.

    Raises ConfigurationError with the file and, for faults of the text, the line.
    """
    name = os.fspath(path)
    try:
        with Path(path).open("rb") as file:
            data = file.read(_SIZE_LIMIT + 1)
    except OSError as error:
        raise ConfigurationError(f"cannot read the configuration: {error.strerror}", file=name) from error
    if len(data) > _SIZE_LIMIT:
        raise ConfigurationError("the configuration is larger than 16 MiB", file=name)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigurationError("the configuration is not UTF-8 text", file=name, line=line) from error
    return parse(text, name, expand_env=expand_env)


def parse(text: str, file: str, *, expand_env: bool = False) -> Body:
    """Parse a text; `file` is what its positions and errors say. Raises ConfigurationError."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    if expand_env:
        text = _VARIABLE.sub(_variable, text)
    if "\0" in text:
        raise ConfigurationError("a null character", file=file, line=text.count("\n", 0, text.index("\0")) + 1)
    return _Parser(text, file).parse()


def _variable(match: re.Match[str]) -> str:
    name = next(group for group in match.groups() if group is not None)
    return "$" if name == "$" else os.environ.get(name, "")


class _Parser:
    def __init__(self, text: str, file: str) -> None:
        self._text = text
        self._file = file
        self._json_form = text.lstrip().startswith("{")
        self._tokens: Iterator[Token] = Scanner(text, file, json_form=self._json_form).tokens()
        self._token = next(self._tokens)
        self._depth = 0

    def parse(self) -> Body:
        if self._json_form:
            body = self._body_in_braces()
            if self._token.kind is not Kind.END:
                raise self._error(f"unexpected {self._token} after the end of the object")
            return body
        position = Position(self._file, 1)
        return Body(self._items(Kind.END, position), position, self._text)

    def _next(self) -> Token:
        token = self._token
        if token.kind is not Kind.END:
            self._token = next(self._tokens)
        return token

    def _items(self, end: Kind | str, start: Position) -> tuple[Attribute | Block, ...]:
        items: list[Attribute | Block] = []
        while not self._at(end):
            if self._token.kind is Kind.END:
                raise start.error('the "{" of this line is not closed with "}"')
            item = self._item()
            if item is not None:
                items.append(item)
            if self._token.is_mark(","):
                self._next()
            elif self._json_form and not self._at(end):
                raise self._error(f"expected a comma or the end of the object, found {self._token}")
        return tuple(items)

    def _at(self, end: Kind | str) -> bool:
        return self._token.kind is end or (isinstance(end, str) and self._token.is_mark(end))

    def _item(self) -> Attribute | Block | None:
        position = self._position()
        name, *labels = self._names()
        if self._token.is_mark(":" if self._json_form else "="):
            if labels:
                raise self._error(f'"{name}" has a label, so it is a block: leave out the "="')
            self._next()
            return self._assigned(name, position)
        if self._token.is_mark("{") and not self._json_form:
            return Block(name, tuple(labels), self._body_in_braces(), position)
        wanted = '":"' if self._json_form else '"=" or "{"'
        raise self._error(f'expected {wanted} after "{" ".join([name, *labels])}", found {self._token}')

    def _names(self) -> list[str]:
        names: list[str] = []
        while self._token.kind in ((Kind.STRING,) if self._json_form else (Kind.WORD, Kind.STRING)):
            names.append(str(self._next().value))
        if not names:
            raise self._error(f"expected a name, found {self._token}")
        return names

    def _assigned(self, name: str, position: Position) -> Attribute | Block | None:
        if self._token.kind is Kind.NULL:
            self._next()
            return None
        value = self._value()
        if isinstance(value, Body):
            return Block(name, (), value, position)
        return Attribute(name, value, position)

    def _value(self) -> Value:
        if self._token.is_mark("{"):
            return self._body_in_braces()
        if self._token.is_mark("["):
            return self._list()
        if self._token.kind in (Kind.STRING, Kind.NUMBER, Kind.BOOLEAN):
            return self._next().value
        if self._token.kind is Kind.WORD:
            raise self._error(f"expected a value, found {self._token}: texts need double quotes")
        raise self._error(f"expected a value, found {self._token}")

    def _list(self) -> Value:
        self._open("[")
        values: list[Value] = []
        while not self._token.is_mark("]"):
            if self._token.is_mark(","):
                self._next()
                continue
            values.append(self._value())
            if not (self._token.is_mark(",") or self._token.is_mark("]")):
                raise self._error(f"expected a comma or the end of the list, found {self._token}")
        self._close()
        return tuple(values)

    def _body_in_braces(self) -> Body:
        position = self._position()
        first = self._open("{")
        items = self._items("}", position)
        last = self._close()
        source = self._text[first.start : last.end] if self._json_form else self._text[first.end : last.start]
        return Body(items, position, source)

    def _open(self, mark: str) -> Token:
        self._depth += 1
        if self._depth > _DEPTH_LIMIT:
            raise self._error(f"nested more than {_DEPTH_LIMIT} levels deep")
        token = self._next()
        if not token.is_mark(mark):
            raise self._error(f'expected "{mark}", found {token}')
        return token

    def _close(self) -> Token:
        self._depth -= 1
        return self._next()

    def _position(self) -> Position:
        return Position(self._file, self._token.line)

    def _error(self, reason: str) -> ConfigurationError:
        return self._position().error(reason)
