"""What the telemetry section says of names and labels: prefixes, what is left out, what is added.

As hashicorp/go-metrics has them, which SPIRE is built on: what no rule names is let through, the longest prefix that
fits decides, and of equal ones the blocked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Protocol

from operations.metrics import Key, Labels
from operations.sections import Telemetry

_UNSAFE: Final = re.compile(r"\W+_?", re.ASCII)
_KEPT: Final = 10_000


class Sink(Protocol):
    """Where a measured value ends up."""

    def count(self, key: Key, by: float, labels: Labels) -> None: ...
    def gauge(self, key: Key, value: float, labels: Labels) -> None: ...
    def sample(self, key: Key, value: float, labels: Labels) -> None: ...


class Ruled:
    """An emitter that applies the rules before one sink."""

    def __init__(self, sink: Sink, telemetry: Telemetry, *, service: str, trust_domain: str, host: str) -> None:
        self._sink = sink
        self._prefix = telemetry.metric_prefix or service
        self._added: Labels = ()
        if telemetry.enable_trust_domain_label:
            self._added += (("trust_domain", sanitized(trust_domain)),)
        if telemetry.enable_hostname_label is not False and host:
            self._added += (("host", host),)
        self._prefixes: Mapping[str, bool] = {
            **dict.fromkeys(telemetry.allowed_prefixes, True),
            **dict.fromkeys(telemetry.blocked_prefixes, False),
        }
        self._allowed_labels = frozenset(telemetry.allowed_labels)
        self._blocked_labels = frozenset(telemetry.blocked_labels)
        self._keys: dict[Key, Key | None] = {}
        self._labels: dict[Labels, Labels] = {}

    def count(self, key: Key, by: float, labels: Labels) -> None:
        if (full := self._key(key)) is not None:
            self._sink.count(full, by, self._ruled(labels))

    def gauge(self, key: Key, value: float, labels: Labels) -> None:
        if (full := self._key(key)) is not None:
            self._sink.gauge(full, value, self._ruled(labels))

    def sample(self, key: Key, value: float, labels: Labels) -> None:
        if (full := self._key(key)) is not None:
            self._sink.sample(full, value, self._ruled(labels))

    def _key(self, key: Key) -> Key | None:
        """The key behind its prefix; None for one that is blocked."""
        if key not in self._keys:
            full = (self._prefix, *key)
            if len(self._keys) >= _KEPT:
                self._keys.clear()
            self._keys[key] = full if self._allows(".".join(full)) else None
        return self._keys[key]

    def _allows(self, name: str) -> bool:
        fitting = [prefix for prefix in self._prefixes if name.startswith(prefix)]
        return not fitting or self._prefixes[max(fitting, key=len)]

    def _ruled(self, labels: Labels) -> Labels:
        if labels not in self._labels:
            made = tuple((sanitized(name), sanitized(value)) for name, value in labels) + self._added
            if len(self._labels) >= _KEPT:
                self._labels.clear()
            self._labels[labels] = tuple(label for label in made if self._shows(label[0]))
        return self._labels[labels]

    def _shows(self, label: str) -> bool:
        if label in self._blocked_labels:
            return False
        return not self._allowed_labels or label in self._allowed_labels


def sanitized(text: str) -> str:
    """With an underscore for each run of characters that some collector could not take."""
    return _UNSAFE.sub("_", text)
