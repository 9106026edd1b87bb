"""What a plugin writes to its standard error, as lines of our log: hclog's JSON, or anything else.

The rules are those of go-plugin's host, whose level and fields SPIRE's log shows.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, cast

from operations.logs import Logger
from operations.quoting import quote

LONGEST_LINE: Final = 64 * 1024
"""Bytes of one line; a longer one is logged in pieces, at debug level."""

BURST: Final = 1 << 20
RATE: Final = 128 * 1024
"""Bytes that may be logged at once, and a second in the long run; more is dropped, and counted."""

_LEAST: Final = 128
"""What the shortest line counts as."""

_LEVELS: Final = {
    "trace": None,  # SPIRE's log has no such lines of plugins
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
}
_PREFIXES: Final = {f"[{name.upper()}]": level for name, level in _LEVELS.items()}
_OURS: Final = frozenset({"external", "plugin_name", "plugin_type", "subsystem_name", "self"})
_PLAIN: Final = re.compile(r"[A-Za-z0-9\-._/@]+")
_PANICS: Final = ("panic: ", "fatal error: ")


@dataclass(frozen=True, slots=True)
class Entry:
    """A line for the log; `level` is logging's number, None for what is not logged."""

    level: int | None
    message: str
    fields: Mapping[str, object] = field(default_factory=dict[str, object])


class Reader:
    """Turns lines into entries. Once a Go panic has begun, plain lines are errors."""

    def __init__(self) -> None:
        self._panic = False

    def entry(self, line: bytes) -> Entry:
        text = line.decode("utf-8", "replace")
        known = _hclog(text)
        if known is not None:
            return known
        for prefix, level in _PREFIXES.items():
            if text.startswith(prefix):
                return Entry(level, text)
        if text.startswith(_PANICS):
            self._panic = True
        return Entry(logging.ERROR if self._panic else logging.DEBUG, text)


class Allowance:
    """A token bucket in bytes: a plugin that floods its standard error must not fill our log's disk."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at = clock()
        self._left = float(BURST)
        self._dry = False
        self.dropped = 0

    def take(self, size: int) -> bool:
        now = self._clock()
        self._left = min(BURST, self._left + (now - self._at) * RATE)
        self._at = now
        cost = max(size, _LEAST)
        # Once dry it waits for a good part of the burst: a flood is not to be told of line by line.
        self._dry = self._left < (BURST // 4 if self._dry else cost)
        if self._dry:
            self.dropped += 1
            return False
        self._left -= cost
        return True


async def follow(chunks: AsyncIterator[bytes], log: Logger) -> AsyncIterator[bytes]:
    """Log what comes until it ends. Yields each line: the last one often says why a plugin ended."""
    reader, allowance = Reader(), Allowance()
    async for line, whole in lines(chunks):
        yield line
        if not allowance.take(len(line)):
            continue
        if allowance.dropped:
            log.warning("The plugin wrote more than its share to the log; lines were dropped", lines=allowance.dropped)
            allowance.dropped = 0
        write(log, reader.entry(line) if whole else Entry(logging.DEBUG, line.decode("utf-8", "replace")))
    if allowance.dropped:
        log.warning("The plugin wrote more than its share to the log; lines were dropped", lines=allowance.dropped)


async def lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[tuple[bytes, bool]]:
    """Lines without their end, and whether each is a whole one rather than a piece of one that is too long."""
    rest, whole = b"", True
    async for chunk in chunks:
        *complete, rest = (rest + chunk).split(b"\n")
        for line in complete:
            for at in range(0, max(len(line), 1), LONGEST_LINE):
                yield line[at : at + LONGEST_LINE].removesuffix(b"\r"), whole and len(line) <= LONGEST_LINE
            whole = True
        while len(rest) > LONGEST_LINE:
            yield rest[:LONGEST_LINE], False
            rest, whole = rest[LONGEST_LINE:], False
    if rest:
        yield rest, whole


def write(log: Logger, entry: Entry) -> None:
    if entry.level is None:
        return
    bound = log.bind(**{_safe(name): value for name, value in entry.fields.items()})
    by_level = {
        logging.DEBUG: bound.debug,
        logging.INFO: bound.info,
        logging.WARNING: bound.warning,
        logging.ERROR: bound.error,
    }
    by_level[entry.level](entry.message)


def _safe(name: str) -> str:
    """A plugin's name for a field: it stays on its line, and hides none of the fields that say who writes."""
    if name in _OURS:
        return f"fields.{name}"
    return name if _PLAIN.fullmatch(name) else quote(name)


def _hclog(text: str) -> Entry | None:
    """An entry of hclog's JSON form; None for other text, valid JSON among it."""
    if not text.startswith("{"):
        return None
    try:
        parsed: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(parsed, dict):
        return None
    line = cast("dict[str, object]", parsed)
    level, message = line.pop("@level", None), line.pop("@message", "")
    if not isinstance(level, str) or not isinstance(message, str) or level.strip().lower() not in _LEVELS:
        return None
    stamp = _timestamp(line.pop("@timestamp", None))
    if stamp is None:
        return None
    return Entry(_LEVELS[level.strip().lower()], message, {**line, "timestamp": stamp})


def _timestamp(value: object) -> str | None:
    """In hclog's form; None for what is no time."""
    if value is None:
        return "0001-01-01T00:00:00.000Z"
    if not isinstance(value, str):
        return None
    try:
        when = datetime.fromisoformat(value)
    except ValueError:
        return None
    offset = when.strftime("%z")
    return f"{when:%Y-%m-%dT%H:%M:%S}.{when.microsecond // 1000:03d}{'Z' if offset in ('', '+0000') else offset}"
