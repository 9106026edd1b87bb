"""Selectors: a property of a node or workload, such as `unix:uid:1000`."""

from __future__ import annotations

from dataclasses import dataclass

from operations.errors import InvalidArgument


@dataclass(frozen=True, slots=True, order=True)
class Selector:
    """`type` names the attestor and has no colon; `value` is the attestor's own."""

    type: str
    value: str

    @classmethod
    def of(cls, kind: str, value: str) -> Selector:
        """Of type and value as messages have them. Raises InvalidArgument."""
        if not kind:
            raise InvalidArgument("missing selector type")
        if ":" in kind:
            raise InvalidArgument("selector type contains ':'")
        if not value:
            raise InvalidArgument("missing selector value")
        return cls(kind, value)

    @classmethod
    def parse(cls, text: str) -> Selector:
        """Read `type:value`. Raises InvalidArgument."""
        kind, colon, value = text.partition(":")
        if not (kind and colon and value):
            raise InvalidArgument(f"selector {text!r} must be given as type:value, for example unix:uid:1000")
        return cls(kind, value)

    def __str__(self) -> str:
        return f"{self.type}:{self.value}"
