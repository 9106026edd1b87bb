"""Metrics kept in memory, a second at a time for an hour, and written to the log when SIGUSR1 asks for them."""

from __future__ import annotations

import asyncio
import math
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from operations import logs, signals
from operations.metrics import Key, Labels

INTERVAL: Final = 1.0
RETENTION: Final = 3600
"""Intervals that are kept: an hour of seconds in which something happened."""
_SERIES: Final = 1000
_FORBIDDEN: Final = str.maketrans(" :", "__")

_log = logs.get("telemetry")


@dataclass(slots=True)
class _Aggregate:
    """Of the values of one interval."""

    count: int = 0
    sum: float = 0.0
    squares: float = 0.0
    least: float = math.inf
    most: float = -math.inf
    updated: float = 0.0

    def add(self, value: float, now: float) -> None:
        self.count += 1
        self.sum += value
        self.squares += value * value
        self.least, self.most = min(self.least, value), max(self.most, value)
        self.updated = now

    def text(self) -> str:
        deviation = 0.0
        if self.count > 1:
            variance = (self.count * self.squares - self.sum**2) / (self.count * (self.count - 1))
            deviation = math.sqrt(max(0.0, variance))
        spread = ""
        if deviation:
            mean = self.sum / self.count
            spread = f"Min: {self.least:.3f} Mean: {mean:.3f} Max: {self.most:.3f} Stddev: {deviation:.3f} "
        return f"Count: {self.count} {spread}Sum: {self.sum:.3f} LastUpdated: {_moment(self.updated, whole=False)}"


@dataclass(slots=True)
class _Interval:
    begin: float
    gauges: dict[str, float] = field(default_factory=dict[str, float])
    counters: dict[str, _Aggregate] = field(default_factory=dict[str, _Aggregate])
    samples: dict[str, _Aggregate] = field(default_factory=dict[str, _Aggregate])

    def lines(self) -> Iterator[str]:
        begin = _moment(self.begin)
        for name, value in self.gauges.items():
            yield f"[{begin}][G] '{name}': {value:.3f}"
        for kind, aggregates in (("C", self.counters), ("S", self.samples)):
            for name, aggregate in aggregates.items():
                yield f"[{begin}][{kind}] '{name}': {aggregate.text()}"


class InMemory:
    """A sink. `clock` gives Unix seconds."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._intervals: deque[_Interval] = deque(maxlen=RETENTION)

    def count(self, key: Key, by: float, labels: Labels) -> None:
        interval = self._current()
        _add(interval.counters, _name(key, labels), by, self._clock())

    def gauge(self, key: Key, value: float, labels: Labels) -> None:
        gauges = self._current().gauges
        name = _name(key, labels)
        if name in gauges or len(gauges) < _SERIES:
            gauges[name] = value

    def sample(self, key: Key, value: float, labels: Labels) -> None:
        interval = self._current()
        _add(interval.samples, _name(key, labels), value, self._clock())

    def _current(self) -> _Interval:
        begin = self._clock() // INTERVAL * INTERVAL
        if not self._intervals or self._intervals[-1].begin != begin:
            self._intervals.append(_Interval(begin))
        return self._intervals[-1]

    def finished(self) -> Sequence[_Interval]:
        """All intervals but the one of now, which may still get something."""
        now = self._clock() // INTERVAL * INTERVAL
        return [interval for interval in self._intervals if interval.begin != now]

    def lines(self) -> Iterator[str]:
        for interval in self.finished():
            yield from interval.lines()

    async def run(self) -> None:
        """Write everything to the log at each SIGUSR1, until cancelled."""
        asked = asyncio.Event()
        leave = signals.listen(signal.SIGUSR1, asked.set)
        try:
            while True:
                await asked.wait()
                asked.clear()
                # An hour of a busy server is many lines.
                await asyncio.to_thread(_write, self.finished())
        finally:
            leave()


def _write(intervals: Sequence[_Interval]) -> None:
    for interval in intervals:
        for line in interval.lines():
            _log.info(line)


def _add(aggregates: dict[str, _Aggregate], name: str, value: float, now: float) -> None:
    aggregate = aggregates.get(name)
    if aggregate is None:
        if len(aggregates) >= _SERIES:
            return
        aggregate = aggregates[name] = _Aggregate()
    aggregate.add(value, now)


def _name(key: Key, labels: Labels) -> str:
    return ".".join(key) + "".join(f".{value}" for _, value in labels).translate(_FORBIDDEN)


def _moment(seconds: float, *, whole: bool = True) -> str:
    """As Go prints a time in UTC."""
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    part = "" if whole else f".{int(seconds % 1 * 1e9):09d}".rstrip("0").rstrip(".")
    return f"{text}{part} +0000 UTC"
