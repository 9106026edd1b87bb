"""From a configuration's text to a typed, frozen model: unknown keys, wrong types and missing values are refused.

Models are msgspec Structs. What a field may hold:

- `str`, `int`, `float`, `bool`, an Enum (by its values), a Literal of texts, `timedelta` (Go's notation, `1h30m`);
- `tuple[X, ...]` a list, or a block written several times;
- another Struct, a block; `Mapping[str, X]`, blocks by their label, or an object's entries;
- `hcl.Body`, a block read later by somebody else; `str | hcl.Body`, either;
- any of these `| None`.

Names are compared without regard to case, and numbers and texts stand for each other, as SPIRE's reader has it.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from datetime import timedelta
from enum import Enum
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin

import msgspec

from operations import duration
from operations.errors import ConfigurationError, InvalidArgument, raise_problems
from operations.hcl import Attribute, Block, Body, Position, Value, name_of
from operations.hcl_tokens import Integer
from operations.quoting import quote

T = TypeVar("T", bound=msgspec.Struct)
_Items = Sequence[Attribute | Block]


def bind(model: type[T], body: Body, *, section: str = "") -> T:
    """Make a model from a body. `section` is the body's name in messages, such as `server`.

    Raises ConfigurationError with file and line; ConfigurationErrors when there are several faults.
    """
    binder = _Binder()
    value = binder.struct(model, body, section)
    raise_problems(binder.problems)
    return cast(T, value)


class _Binder:
    """One reading. A fault is noted and the reading goes on, so that one run shows them all."""

    def __init__(self) -> None:
        self.problems: list[ConfigurationError] = []

    def struct(self, model: type[msgspec.Struct], body: Body, section: str) -> object:
        fields = {field.encode_name.lower(): field for field in msgspec.structs.fields(model)}
        values: dict[str, object] = {}
        before = len(self.problems)
        for item in body.items:
            if name_of(item).lower() not in fields:
                self._unknown(item, section, [field.encode_name for field in fields.values()])
        for key, field in fields.items():
            if items := body.named(key):
                values[field.name] = self._field(field.type, items, _path(section, field.encode_name))
            elif field.required:
                self._problem(body.position, f"{_path(section, field.encode_name)} must be configured")
        if len(self.problems) > before:
            return None
        try:
            return model(**values)
        except (ValueError, InvalidArgument) as error:
            self._problem(body.position, f"{section}: {error}" if section else str(error))
        return None

    def _unknown(self, item: Attribute | Block, section: str, known: Sequence[str]) -> None:
        import difflib  # needed for bad news only

        name = name_of(item)
        close = difflib.get_close_matches(name.lower(), known, 1, 0.7)
        advice = f": did you mean {quote(close[0])}?" if close else ""
        place = f" in {section}" if section else ""
        self._problem(item.position, f"unknown key {quote(name)}{place}{advice}")

    def _field(self, kind: Any, items: _Items, path: str) -> object:
        kind = _chosen(kind, items[-1])
        origin = get_origin(kind)
        if origin is tuple:
            return self._sequence(get_args(kind)[0], items, path)
        if isinstance(origin, type) and issubclass(origin, Mapping):
            return self._mapping(get_args(kind)[1], items, path)
        if kind is Body:
            return self._block([_unlabelled(item) for item in items], path)
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            body = self._block(items, path)
            return self.struct(kind, body, path) if body is not None else None
        last = items[-1]
        if isinstance(last, Block):
            self._wrong(last, f"expected {_words(kind)}, found a block", path)
            return None
        return self._scalar(kind, last.value, last.position, path)

    def _block(self, items: _Items, path: str) -> Body | None:
        """One body of all the blocks of a name, as SPIRE merges them."""
        bodies = self._bodies(items, path)
        if not bodies:
            return None
        if len(bodies) == 1:
            return bodies[0]
        merged = tuple(item for body in bodies for item in body.items)
        return Body(merged, bodies[0].position, "\n".join(body.source for body in bodies))

    def _bodies(self, items: _Items, path: str) -> list[Body]:
        bodies: list[Body] = []
        for item in items:
            if isinstance(item, Block):
                if item.labels:
                    self._problem(item.position, f"{path} takes no label, found {quote(item.labels[0])}")
                bodies.append(item.body)
            elif isinstance(item.value, tuple) and all(isinstance(value, Body) for value in item.value):
                bodies.extend(cast(tuple[Body, ...], item.value))
            else:
                self._wrong(item, "expected a block", path)
        return bodies

    def _sequence(self, kind: Any, items: _Items, path: str) -> object:
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            return tuple(self.struct(kind, body, path) for body in self._bodies(items, path))
        values: list[object] = []
        for item in items:
            if isinstance(item, Block) or not isinstance(item.value, tuple):
                self._wrong(item, "expected a list, in [ ]", path)
                continue
            values.extend(self._scalar(kind, value, item.position, path) for value in item.value)
        return tuple(values)

    def _mapping(self, kind: Any, items: _Items, path: str) -> object:
        entries: dict[str, list[Attribute | Block]] = {}
        for item in items:
            for entry in self._entries(item, path):
                entries.setdefault(name_of(entry), []).append(entry)
        return {name: self._field(kind, found, f"{path}.{name}") for name, found in entries.items()}

    def _entries(self, item: Attribute | Block, path: str) -> Sequence[Attribute | Block]:
        if isinstance(item, Block) and item.labels:
            return [Block(item.labels[0], item.labels[1:], item.body, item.position)]
        return [entry for body in self._bodies([item], path) for entry in body.items]

    def _scalar(self, kind: Any, value: Value, position: Position, path: str) -> object:
        try:
            return _converted(kind, value)
        except _Mismatch:
            self._problem(position, f"{path}: expected {_words(kind)}, found {_shown(value)}")
        except ValueError as error:
            self._problem(position, f"{path}: {error}")
        return None

    def _wrong(self, item: Attribute | Block, reason: str, path: str) -> None:
        self._problem(item.position, f"{path}: {reason}")

    def _problem(self, position: Position, reason: str) -> None:
        self.problems.append(position.error(reason))


class _Mismatch(Exception):
    """A value of another kind than the one wanted."""


def _converted(kind: Any, value: Value) -> object:
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and not isinstance(value, bool):
        return _integer(value)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    text: Value = value.text if isinstance(value, Integer) else value
    if kind is not bool and isinstance(text, str):
        if kind is str:
            return text
        if kind is timedelta:
            return duration.parse(text)
        if isinstance(kind, type) and issubclass(kind, Enum):
            return _member(kind, text)
        if get_origin(kind) is Literal:
            return _one_of(text, get_args(kind))
    raise _Mismatch


def _integer(value: Value) -> int:
    if isinstance(value, str):
        text = value
        try:
            value = Integer(text)
        except ValueError:
            raise ValueError(f"expected a whole number, found {quote(text)}") from None
    if not isinstance(value, int):
        raise _Mismatch
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{value} is too large")
    return int(value)


def _member(kind: type[Enum], text: str) -> Enum:
    return kind(_one_of(text, [member.value for member in kind]))


def _one_of(text: str, known: Sequence[object]) -> str:
    if text not in known:
        raise ValueError(f"unknown value {quote(text)}: use one of {', '.join(map(str, known))}")
    return text


def _unlabelled(item: Attribute | Block) -> Attribute | Block:
    """`profile "https_web" {` is short for `profile { https_web {`."""
    if isinstance(item, Attribute) or not item.labels:
        return item
    inner = Block(item.labels[0], item.labels[1:], item.body, item.position)
    return Block(item.type, (), Body((inner,), item.position, item.source), item.position)


def _chosen(kind: Any, item: Attribute | Block) -> Any:
    """The part of a union that the item can be."""
    if get_origin(kind) not in (types.UnionType, Union):
        return kind
    parts = [part for part in get_args(kind) if part is not types.NoneType]
    if len(parts) > 1 and Body in parts:
        return Body if isinstance(item, Block) else next(part for part in parts if part is not Body)
    return parts[0]


def _words(kind: Any) -> str:
    if not isinstance(kind, type):
        return "another value"
    if issubclass(kind, bool):
        return "true or false, without quotes"
    if issubclass(kind, int):
        return "a whole number"
    if issubclass(kind, float):
        return "a number"
    if issubclass(kind, timedelta):
        return "a duration such as 1h30m"
    if issubclass(kind, tuple):
        return "a list"
    return "a block" if issubclass(kind, Body) else "a text"


def _shown(value: Value) -> str:
    """Texts that are long may be secrets in the wrong place."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    words = _words(type(value))
    return f"{words} ({quote(value)})" if isinstance(value, str) and len(value) <= 20 else words


def _path(section: str, name: str) -> str:
    """`server.bind_port`; of a plugin, whose section is `KeyManager "disk"`, `KeyManager "disk": keys_path`."""
    if not section:
        return name
    return f"{section}: {name}" if section.endswith('"') else f"{section}.{name}"
