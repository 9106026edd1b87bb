"""What text/template has by itself: comparisons, lengths, elements, and Go's fmt."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import TypeGuard

from attestors.agent_path.values import (
    Texts,
    Value,
    as_list,
    as_mapping,
    equal,
    is_true,
    kind_of,
    quoted,
    show,
    text_of,
    to_bytes,
)
from operations.errors import InvalidArgument

_VERB = re.compile(r"%(?P<flags>[-+# 0]*)(?P<width>\d{0,3})(?P<precision>\.\d{0,3})?(?P<verb>.?)", re.DOTALL)
_INTEGERS = {"d": "d", "b": "b", "o": "o", "x": "x", "X": "X"}
_FLOATS = "eEfFgG"


def negation(value: Value) -> bool:
    return not is_true(value)


def equals(value: Value, *others: Value) -> bool:
    """Whether the value is one of the others."""
    for other in others:
        _require_comparable(value, other)
    return any(equal(value, other) for other in others)


def differs(left: Value, right: Value) -> bool:
    return not equals(left, right)


def less(left: Value, right: Value) -> bool:
    if isinstance(left, str) and isinstance(right, str):
        return to_bytes(left) < to_bytes(right)
    if _is_number(left) and _is_number(right):
        return left < right
    raise InvalidArgument(f"a {kind_of(left)} and a {kind_of(right)} have no order")


def less_or_equal(left: Value, right: Value) -> bool:
    return less(left, right) or equals(left, right)


def greater(left: Value, right: Value) -> bool:
    return less(right, left)


def greater_or_equal(left: Value, right: Value) -> bool:
    return not less(left, right)


def _is_number(value: Value) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _require_comparable(left: Value, right: Value) -> None:
    kinds = {kind_of(left), kind_of(right)}
    if len(kinds) > 1 and "nil" not in kinds:
        raise InvalidArgument(f"incompatible types for comparison: {kind_of(left)} and {kind_of(right)}")
    if kinds & {"list", "map"}:
        raise InvalidArgument("lists and maps cannot be compared")


def length(value: Value) -> int:
    if isinstance(value, str):
        return len(to_bytes(value))
    items = as_list(value)
    found = items if items is not None else as_mapping(value)
    if found is None:
        raise InvalidArgument(f"a {kind_of(value)} has no length")
    return len(found)


def index(value: Value, *keys: Value) -> Value:
    for key in keys:
        value = _element(value, key)
    return value


def _element(value: Value, key: Value) -> Value:
    if (mapping := as_mapping(value)) is not None:
        if not isinstance(key, str):
            raise InvalidArgument(f"a map is indexed by a string, not by a {kind_of(key)}")
        return mapping.get(key, "" if isinstance(value, Texts) else None)
    items = list(to_bytes(value)) if isinstance(value, str) else as_list(value)
    if items is None:
        raise InvalidArgument(f"can't index a {kind_of(value)}")
    if not isinstance(key, int) or isinstance(key, bool):
        raise InvalidArgument(f"a list is indexed by an int, not by a {kind_of(key)}")
    if not 0 <= key < len(items):
        raise InvalidArgument(f"index out of range: {key}, of {len(items)}")
    return items[key]


def print_(*values: Value) -> str:
    """As Go's Sprint: a space between neighbours of which none is a text."""
    output = ""
    for position, value in enumerate(values):
        if position and not isinstance(value, str) and not isinstance(values[position - 1], str):
            output += " "
        output += show(value, top=False)
    return output


def println(*values: Value) -> str:
    return " ".join(show(value, top=False) for value in values) + "\n"


def printf(template: str, *values: Value) -> str:
    """Go's Sprintf: flags, width and precision, and the verbs v, s, q, d, b, o, x, X, c, t, e, f and g."""
    remaining = list(values)

    def put(found: re.Match[str]) -> str:
        verb = found["verb"]
        if verb == "%":
            return "%"
        if not verb:
            return "%!(NOVERB)"
        if not remaining:
            return f"%!{verb}(MISSING)"
        return _format(verb, remaining.pop(0), found["flags"], found["precision"], int(found["width"] or 0))

    output = _VERB.sub(put, template)
    if not remaining:
        return output
    extra = ", ".join(f"{_go_type(value)}={show(value, top=False)}" for value in remaining)
    return f"{output}%!(EXTRA {extra})"


def _format(verb: str, value: Value, flags: str, precision: str | None, width: int) -> str:
    digits = None if precision is None else int(precision[1:] or 0)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    text = _formatted(verb, value, flags, digits)
    if text is None:
        return _misfit(verb, value)
    if "-" in flags:
        return text.ljust(width)
    if "0" in flags and (number or verb in "xXsqv"):
        sign = text[0] if number and text[:1] in ("+", "-") else ""
        return sign + text[len(sign) :].rjust(width - len(sign), "0")
    return text.rjust(width)


def _formatted(verb: str, value: Value, flags: str, digits: int | None) -> str | None:
    """None for a verb that does not fit the value."""
    if (items := as_list(value)) is not None and not (isinstance(value, bytes) and verb in "sqxX"):
        return _of_list(verb, items, flags, digits)
    if isinstance(value, str | bytes):
        return _of_text(verb, value, flags, digits)
    if isinstance(value, bool):
        return show(value) if verb in "vt" else None
    if isinstance(value, int):
        return _of_integer(verb, value, flags)
    if isinstance(value, float):
        return _of_float(verb, value, digits)
    return show(value, top=False) if verb == "v" else None


def _of_list(verb: str, items: Sequence[Value], flags: str, digits: int | None) -> str:
    texts = (_formatted(verb, item, flags, digits) for item in items)
    return "[" + " ".join(_misfit(verb, item) if t is None else t for t, item in zip(texts, items, strict=True)) + "]"


def _misfit(verb: str, value: Value) -> str:
    return f"%!{verb}(<nil>)" if value is None else f"%!{verb}({_go_type(value)}={show(value, top=False)})"


def _of_text(verb: str, value: str | bytes, flags: str, digits: int | None) -> str | None:
    if verb in "xX":
        data = value if isinstance(value, bytes) else to_bytes(value)
        data = data if digits is None else data[:digits]
        text = data.hex(" ") if " " in flags else data.hex()
        return text.upper() if verb == "X" else text
    text = text_of(value)
    text = text if digits is None else text[:digits]
    if verb == "q":
        return quoted(text)
    return text if verb in "vs" else None


def _of_integer(verb: str, value: int, flags: str) -> str | None:
    if verb == "c":
        return _character(value)
    if verb == "q":
        return f"'{_character(value)}'"
    sign = "-" if value < 0 else "+" if "+" in flags else " " if " " in flags else ""
    prefix = {"x": "0x", "X": "0X", "o": "0", "b": "0b"}.get(verb, "") if "#" in flags else ""
    form = _INTEGERS.get("d" if verb == "v" else verb)
    return None if form is None else sign + prefix + format(abs(value), form)


def _character(code: int) -> str:
    return chr(code) if 0 <= code <= sys.maxunicode else "\ufffd"


def _of_float(verb: str, value: float, digits: int | None) -> str | None:
    if verb == "v" or (verb == "g" and digits is None):
        return show(value)
    return format(value, f".{6 if digits is None else digits}{verb}") if verb in _FLOATS else None


def _go_type(value: Value) -> str:
    names = {"float": "float64", "list": "[]interface {}", "map": "map[string]interface {}", "nil": "<nil>"}
    return names.get(kind_of(value), kind_of(value))
