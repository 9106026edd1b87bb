"""Values of templates, with Go's ideas of truth, equality and text.

A value is a str, bytes, bool, int, float, None, a list or a mapping with str keys. Texts are UTF-8 underneath, as Go's
are: lengths and cuts count bytes, and what a cut leaves of a character is kept as surrogates (PEP 383).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import cast

Value = object

_POWERS_WRITTEN_OUT = 6


class Texts(dict[str, str]):
    """A mapping to texts only, which answers `index` with an empty text for a key that it has not."""


class Fields(Mapping[str, Value]):
    """Values by name, each made when a template asks for it."""

    def __init__(self, makers: Mapping[str, Callable[[], Value]]) -> None:
        self._makers = makers

    def __getitem__(self, name: str) -> Value:
        return self._makers[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._makers

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def as_list(value: Value) -> list[Value] | None:
    if isinstance(value, bytes):
        return list(value)
    return list(cast("Sequence[Value]", value)) if isinstance(value, list | tuple) else None


def as_mapping(value: Value) -> Mapping[str, Value] | None:
    return cast("Mapping[str, Value]", value) if isinstance(value, Mapping) else None


def to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def to_text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def kind_of(value: Value) -> str:
    """A word for messages."""
    if isinstance(value, Mapping):
        return "map"
    if isinstance(value, list | tuple | bytes):
        return "list"
    if isinstance(value, str):
        return "string"
    return "nil" if value is None else type(value).__name__


def is_true(value: Value) -> bool:
    """Go's truth: what is not zero and not empty."""
    return bool(value)


def show(value: Value, *, top: bool = True) -> str:
    """What Go's fmt makes of a value by `%v`; at the top of a template's output nil is `<no value>`."""
    if value is None:
        return "<no value>" if top else "<nil>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _float(value)
    if (items := as_list(value)) is not None:
        return "[" + " ".join(show(item, top=False) for item in items) + "]"
    if (mapping := as_mapping(value)) is not None:
        return "map[" + " ".join(f"{key}:{show(mapping[key], top=False)}" for key in sorted(mapping)) + "]"
    return str(value)


def text_of(value: Value) -> str:
    """sprig's way: bytes are text too."""
    return to_text(value) if isinstance(value, bytes) else show(value, top=False)


def texts_of(value: Value) -> list[str]:
    """sprig's way: a list without its nils, or a single value as a list."""
    items = as_list(value)
    if items is None:
        return [] if value is None else [text_of(value)]
    return [text_of(item) for item in items if item is not None]


def equal(left: Value, right: Value) -> bool:
    """Whether both are of one kind and the same."""
    return kind_of(left) == kind_of(right) and left == right


def quoted(text: str) -> str:
    """A Go string literal."""
    escapes = {'"': '\\"', "\\": "\\\\", "\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    escapes["\v"] = "\\v"
    return '"' + "".join(escapes.get(each) or _escaped(each) for each in text) + '"'


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if character.isprintable():
        return character
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _float(value: float) -> str:
    """The fewest digits that tell the number; with an exponent for very small and for large ones."""
    _, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    if not isinstance(exponent, int):
        return repr(value)
    power = len(digits) + exponent - 1
    return f"{value:.{len(digits) - 1}e}" if not -4 <= power < _POWERS_WRITTEN_OUT else f"{value:.{max(-exponent, 0)}f}"
