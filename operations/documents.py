"""JSON documents of others."""

from __future__ import annotations

from typing import TypeVar

import msgspec

T = TypeVar("T")


class Malformed(Exception):
    """It is no JSON, or not what it should be; the text says where."""


def decode(data: bytes | str | msgspec.Raw, kind: type[T]) -> T:
    """Unknown keys are let be. Raises Malformed."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(str(error)) from error
