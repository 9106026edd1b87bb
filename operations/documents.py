"""JSON documents that others made: one way to read them, and one error for whatever is wrong with them."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from operations.errors import InvalidArgument

T = TypeVar("T")


class Malformed(InvalidArgument):
    """It is no JSON, or not what it should be; the text says where. Its cause is msgspec's error."""


def decode(document: bytes | str | msgspec.Raw, kind: type[T]) -> T:
    """Keys that the kind does not have are let be, unless it forbids them. Raises Malformed."""
    try:
        return msgspec.json.decode(document, type=kind)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        # msgspec has errors of its own for neither text that is not UTF-8 nor brackets without end.
        raise Malformed(str(error)) from error
