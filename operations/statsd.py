"""Metrics as lines of text, for StatsD and for Datadog's extension of it, DogStatsD.

Byte for byte what SPIRE's libraries, hashicorp/go-metrics and datadog-go, send of the same value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

from operations.metrics import Key, Labels

STATSD_BYTES: Final = 1400
DOGSTATSD_BYTES: Final = 1432
DOGSTATSD_SOCKET_BYTES: Final = 8192
"""The longest packets: to StatsD, to DogStatsD over UDP, and over a Unix socket."""

_KEPT: Final = 10_000
_FORBIDDEN: Final = str.maketrans({":": "_", " ": "_", "\n": None})
_TAGS: Final = {
    "DD_ENTITY_ID": "dd.internal.entity_id",
    "DD_ENV": "env",
    "DD_SERVICE": "service",
    "DD_VERSION": "version",
}
"""Datadog's own variables, which tag everything that a process sends."""

Put = Callable[[bytes], None]
"""Takes a line to the collector; never waits and never fails."""


class Statsd:
    """A sink. StatsD knows no labels: their values follow the key."""

    def __init__(self, put: Put) -> None:
        self._put = put
        self._names: dict[tuple[Key, Labels], bytes] = {}

    def count(self, key: Key, by: float, labels: Labels) -> None:
        self._put(b"%b:%.6f|c\n" % (self._name(key, labels), by))

    def gauge(self, key: Key, value: float, labels: Labels) -> None:
        self._put(b"%b:%.6f|g\n" % (self._name(key, labels), value))

    def sample(self, key: Key, value: float, labels: Labels) -> None:
        self._put(b"%b:%.6f|ms\n" % (self._name(key, labels), value))

    def _name(self, key: Key, labels: Labels) -> bytes:
        name = self._names.get((key, labels))
        if name is None:
            if len(self._names) >= _KEPT:
                self._names.clear()
            name = _flat(".".join((*key, *(value for _, value in labels)))).encode()
            self._names[key, labels] = name
        return name


class DogStatsd:
    """A sink. Labels become tags; a counter is a whole number."""

    def __init__(self, put: Put, environment: Mapping[str, str]) -> None:
        """`environment` may have Datadog's variables, DD_ENV and the like."""
        self._put = put
        self._common = [f"{tag}:{environment[name]}" for name, tag in _TAGS.items() if environment.get(name)]
        self._parts: dict[tuple[Key, Labels], tuple[bytes, bytes]] = {}

    def count(self, key: Key, by: float, labels: Labels) -> None:
        name, tags = self._named(key, labels)
        self._put(b"%b:%d|c%b\n" % (name, by, tags))

    def gauge(self, key: Key, value: float, labels: Labels) -> None:
        name, tags = self._named(key, labels)
        self._put(b"%b:%b|g%b\n" % (name, _shortest(value), tags))

    def sample(self, key: Key, value: float, labels: Labels) -> None:
        name, tags = self._named(key, labels)
        self._put(b"%b:%.6f|ms%b\n" % (name, value, tags))

    def _named(self, key: Key, labels: Labels) -> tuple[bytes, bytes]:
        """What stands before the value, and behind it."""
        found = self._parts.get((key, labels))
        if found is None:
            if len(self._parts) >= _KEPT:
                self._parts.clear()
            # Without a value the name is all of a tag.
            own = [_flat(name) + (f":{_flat(value)}" if value else "") for name, value in labels]
            tags = ",".join((*self._common, *own)).replace("\n", "")
            found = (_flat(".".join(key)).encode(), f"|#{tags}".encode() if tags else b"")
            self._parts[key, labels] = found
        return found


def _flat(text: str) -> str:
    return text.translate(_FORBIDDEN)


def _shortest(value: float) -> bytes:
    """The fewest digits that are this number, without an exponent."""
    if not math.isfinite(value):
        return b"NaN" if math.isnan(value) else b"+Inf" if value > 0 else b"-Inf"
    text = repr(float(value))
    if "e" in text:
        from decimal import Decimal

        text = f"{Decimal(text):f}"
    return text.removesuffix(".0").encode()
