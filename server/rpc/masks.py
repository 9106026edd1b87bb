"""Output masks: a response carries the fields its mask names, and always its id. No mask means all."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.message import Message


def apply(message: Message, mask: Message | None) -> None:
    """Clear the fields of `message` that `mask`, a message of booleans with the same names, does not set."""
    if mask is not None:
        clear(message, missing(mask))


def clear(message: Message, fields: Iterable[str]) -> None:
    for name in fields:
        message.ClearField(name)


def names(mask: Message) -> frozenset[str]:
    """The fields that the mask sets."""
    return frozenset(field.name for field in mask.DESCRIPTOR.fields if getattr(mask, field.name))


def missing(mask: Message) -> list[str]:
    """The fields that the mask does not set."""
    return [field.name for field in mask.DESCRIPTOR.fields if not getattr(mask, field.name)]
