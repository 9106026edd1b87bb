"""The two forms a command prints its result in: pretty, which each command words itself, and json, for programs.

The json form is one line: fields by their names in the .proto files, sorted, unset ones present (but absent
messages left out), 64-bit integers as strings and enums by name.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from operations.flags import Flag, FlagSet
from operations.quoting import quote

if TYPE_CHECKING:
    from google.protobuf.message import Message

PRETTY = "pretty"
JSON = "json"


def add_flag(flags: FlagSet) -> Flag[str]:
    """Declare -output; its value is PRETTY or JSON."""
    return flags.custom("output", PRETTY, "pretty, for people, or json, one line for programs", _Selection().read)


class _Selection:
    def __init__(self) -> None:
        self._given = False

    def read(self, text: str, earlier: str) -> str:
        if self._given and text != earlier:
            raise ValueError(f"the output format has already been set to {quote(earlier)}")
        form = {"json": JSON, "pretty": PRETTY, "prettyprint": PRETTY}.get(text.lower())
        if form is None:
            raise ValueError(f"bad formatter flag: unknown format option: {quote(text)}")
        self._given = True
        return form


def print_result(form: str, *messages: Message, pretty: Callable[[], None]) -> None:
    """Print protobuf messages in the chosen form: one as an object, several as a list."""
    if form == JSON:
        print_json(*messages)
    else:
        pretty()


def print_json(*messages: Message) -> None:
    objects = [message_object(message) for message in messages]
    if objects:
        _write(objects[0] if len(objects) == 1 else objects, sort=True)


def print_object(value: object) -> None:
    """Print what is no protobuf message, on one line too; its members keep their order."""
    _write(value, sort=False)


def message_object(message: Message) -> Mapping[str, Any]:
    """The message as values for json.dumps."""
    from google.protobuf import json_format

    value: dict[str, Any] = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return {name: _as_go_writes(part) for name, part in value.items()}


def _as_go_writes(value: Any) -> Any:
    """Whole floating-point numbers without a fraction: those of a Struct are all floating-point."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e21:
        return int(value)
    if isinstance(value, dict):
        return {name: _as_go_writes(part) for name, part in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_as_go_writes(part) for part in cast("list[object]", value)]
    return value


def _write(value: object, *, sort: bool) -> None:
    sys.stdout.write(_escaped(json.dumps(value, ensure_ascii=False, sort_keys=sort, separators=(",", ":"))) + "\n")


def _escaped(text: str) -> str:
    """Go's encoder writes what HTML gives a meaning to, and two line separators, as escapes."""
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text
