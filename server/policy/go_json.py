"""A request as Go's encoding/json has it of the struct that protoc-gen-go makes, as policies for SPIRE expect.

It is not protobuf's JSON: names are those of the .proto file, empty values are left out, enums and 64-bit integers are
numbers, bytes are base64. A oneof is an object by its name in Go's spelling, with one member, in that spelling too;
null when nothing is chosen.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import cast

from google.protobuf.descriptor import FieldDescriptor, OneofDescriptor
from google.protobuf.message import Message

Json = str | int | float | bool | None | Sequence["Json"] | Mapping[str, "Json"]


def to_json(message: Message) -> dict[str, Json]:
    """Recursion goes no deeper than protobuf's parser, which stops at 100."""
    found: dict[str, Json] = {}
    present = {field.name: value for field, value in message.ListFields()}
    for oneof in cast("Sequence[OneofDescriptor]", message.DESCRIPTOR.oneofs):
        if not _is_optional(oneof):
            chosen = message.WhichOneof(oneof.name)
            member: Json = None if chosen is None else {camel_case(chosen): _one(getattr(message, chosen))}
            found[camel_case(oneof.name)] = member
    for field in cast("Sequence[FieldDescriptor]", message.DESCRIPTOR.fields):
        if field.name in present and (field.containing_oneof is None or _is_optional(field.containing_oneof)):
            found[field.name] = _any(field, present[field.name])
    return found


def _is_optional(oneof: OneofDescriptor) -> bool:
    """Whether `optional` has made it, which Go's struct does not show."""
    return len(oneof.fields) == 1 and oneof.name == f"_{oneof.fields[0].name}"


def _any(field: FieldDescriptor, value: object) -> Json:
    if not field.is_repeated:
        return _one(value)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        entries = cast("Mapping[object, object]", value)
        return {_key(key): _one(each) for key, each in entries.items()}
    return [_one(each) for each in cast("Sequence[object]", value)]


def _one(value: object) -> Json:
    if isinstance(value, Message):
        return to_json(value)
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
