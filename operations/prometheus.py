"""Metrics for Prometheus to scrape, in its text format (version 0.0.4).

Written out here, and not by prometheus_client: that library's counters are all named `…_total` and its summaries have
no quantiles, while dashboards made for SPIRE ask for the names and quantiles of Go's client.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from operations import logs
from operations.http import Request, Response
from operations.metrics import Key, Labels

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_QUANTILES: Final = (0.5, 0.9, 0.99)
_WINDOW: Final = 10.0
_WINDOW_SAMPLES: Final = 256
_SERIES: Final = 10_000
_FORBIDDEN: Final = str.maketrans(" .=-/", "_____")

_log = logs.get("telemetry")


@dataclass(slots=True)
class _Summary:
    """Of all samples, and the last ones: quantiles are of the last ten seconds, and of the newest samples in these."""

    count: int = 0
    sum: float = 0.0
    recent: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_WINDOW_SAMPLES))

    def add(self, value: float, now: float) -> None:
        self.count += 1
        self.sum += value
        self.recent.append((now, value))

    def quantiles(self, now: float) -> Iterator[tuple[float, float]]:
        """NaN where nothing came lately."""
        values = sorted(value for moment, value in self.recent if now - moment <= _WINDOW)
        for quantile in _QUANTILES:
            rank = max(0, math.ceil(quantile * len(values)) - 1)
            yield quantile, values[rank] if values else math.nan


@dataclass(slots=True)
class _Family:
    """All series of one name."""

    kind: str
    values: dict[Labels, float] = field(default_factory=dict[Labels, float])
    summaries: dict[Labels, _Summary] = field(default_factory=dict[Labels, _Summary])


Extra = Callable[[], Iterable[tuple[str, str, float]]]
"""Values that are looked up at a scrape: kind, name, value."""


class Prometheus:
    """A sink, and what answers a scrape of it."""

    def __init__(self, extra: Extra = lambda: (), clock: Callable[[], float] = time.monotonic) -> None:
        self._families: dict[str, _Family] = {}
        self._series = 0
        self._full = False
        self._extra = extra
        self._clock = clock

    def count(self, key: Key, by: float, labels: Labels) -> None:
        values = self._values(key, "counter", labels)
        if values is not None:
            values[labels] = values.get(labels, 0.0) + by

    def gauge(self, key: Key, value: float, labels: Labels) -> None:
        values = self._values(key, "gauge", labels)
        if values is not None:
            values[labels] = value

    def sample(self, key: Key, value: float, labels: Labels) -> None:
        family = self._family(key, "summary")
        if family is None:
            return
        summary = family.summaries.get(labels)
        if summary is None:
            if not self._has_room():
                return
            summary = family.summaries[labels] = _Summary()
        summary.add(value, self._clock())

    def _values(self, key: Key, kind: str, labels: Labels) -> dict[Labels, float] | None:
        """Where the series has, or gets, its place."""
        family = self._family(key, kind)
        if family is None or (labels not in family.values and not self._has_room()):
            return None
        return family.values

    def _family(self, key: Key, kind: str) -> _Family | None:
        """None for a name that is of another kind: a scrape with both would be refused as a whole."""
        name = "_".join(key).translate(_FORBIDDEN)
        family = self._families.get(name)
        if family is None:
            family = self._families[name] = _Family(kind)
        return family if family.kind == kind else None

    def _has_room(self) -> bool:
        if self._series < _SERIES:
            self._series += 1
            return True
        if not self._full:
            self._full = True
            _log.warning("More series of metrics than are kept; new ones are left out", limit=_SERIES)
        return False

    async def respond(self, _request: Request) -> Response:
        return Response(200, self.text().encode(), CONTENT_TYPE)

    def text(self) -> str:
        """Everything, as Prometheus reads it."""
        families = {kind_name[1]: kind_name for kind_name in self._extra()}
        lines: list[str] = []
        for name in sorted({*self._families, *families}):
            if name in self._families:
                family = self._families[name]
                lines += _head(name, family.kind)
                lines += self._lines(name, family)
            else:
                kind, _, value = families[name]
                lines += [*_head(name, kind), f"{name} {_number(value)}"]
        return "".join(f"{line}\n" for line in lines)

    def _lines(self, name: str, family: _Family) -> Iterator[str]:
        for labels, value in sorted(family.values.items()):
            yield f"{name}{_labelled(labels)} {_number(value)}"
        now = self._clock()
        for labels, summary in sorted(family.summaries.items(), key=lambda item: item[0]):
            for quantile, value in summary.quantiles(now):
                yield f"{name}{_labelled(labels, quantile=f'{quantile:g}')} {_number(value)}"
            yield f"{name}_sum{_labelled(labels)} {_number(summary.sum)}"
            yield f"{name}_count{_labelled(labels)} {summary.count}"


def _head(name: str, kind: str) -> list[str]:
    return [f"# HELP {name} {name}", f"# TYPE {name} {kind}"]


def _labelled(labels: Labels, **more: str) -> str:
    # Of a name that comes twice the last value counts; in a scrape it would be an error.
    pairs = [*sorted(dict(labels).items()), *more.items()]
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs) + "}" if pairs else ""


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))
