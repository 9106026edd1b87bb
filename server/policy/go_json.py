"""A request as Go's encoding/json has it of the struct that protoc-gen-go makes: what policies for SPIRE are written for.

It is not protobuf's JSON: names are those of the .proto file, empty values are left out, enums and 64-bit integers are
numbers, bytes are base64. A oneof is an object by its name in Go's spelling, with one member, in that spelling too;
null when nothing is chosen.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import cast

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

Json = str | int | float | bool | None | Sequence["Json"] | Mapping[str, "Json"]


def to_json(message: Message) -> dict[str, Json]:
    """Recursion goes no deeper than protobuf's parser, which stops at 100."""
    found: dict[str, Json] = {}
    present = {field.name: value for field, value in message.ListFields()}
    for oneof in message.DESCRIPTOR.oneofs:
        if _is_optional(oneof.fields):
            continue
        chosen = message.WhichOneof(oneof.name)
        found[camel_case(oneof.name)] = (
            None
            if chosen is None
            else {camel_case(chosen): _one(message.DESCRIPTOR.fields_by_name[chosen], getattr(message, chosen))}
        )
    for field in message.DESCRIPTOR.fields:
        if field.name in present and (field.containing_oneof is None or _is_optional(field.containing_oneof.fields)):
            found[field.name] = _any(field, present[field.name])
    return found


def _is_optional(fields: Sequence[FieldDescriptor]) -> bool:
    """Whether these are a oneof that `optional` has made, which Go's struct does not show."""
    [oneof] = {field.containing_oneof for field in fields}
    return len(fields) == 1 and oneof is not None and oneof.name == f"_{fields[0].name}"


def _any(field: FieldDescriptor, value: object) -> Json:
    if not field.is_repeated:
        return _one(field, value)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        kind = field.message_type.fields_by_name["value"]
        entries = cast("Mapping[object, object]", value)
        return {_key(key): _one(kind, each) for key, each in sorted(entries.items(), key=lambda entry: str(entry[0]))}
    return [_one(field, each) for each in cast("Sequence[object]", value)]


def _one(_field: FieldDescriptor, value: object) -> Json:
    if isinstance(value, Message):
        return cast("Json", to_json(value))
    if isinstance(value, bytes):
        return b64encode(value).decode()
    return cast("str | int | float | bool", value)


def _key(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def camel_case(name: str) -> str:
    """A name as protoc-gen-go spells it: an underscore goes where a small letter follows, which becomes a capital."""
    made: list[str] = []
    for index, letter in enumerate(name):
        before = name[index - 1] if index else "_"
        following = name[index + 1] if index + 1 < len(name) else ""
        if letter == "_" and index == 0:
            made.append("X")
        elif letter == "_" and following.islower():
            continue
        elif letter.islower() and (before == "_" or before.isdigit()):
            made.append(letter.upper())
        else:
            made.append(letter)
    return "".join(made)
