"""Durations in the notation of Go's `time.ParseDuration`, in which SPIRE's settings are written: `1h30m`, `500ms`."""

from __future__ import annotations

import re
from datetime import timedelta

from operations.quoting import quote

_UNITS = {"ns": 1e-3, "us": 1.0, "µs": 1.0, "μs": 1.0, "ms": 1e3, "s": 1e6, "m": 6e7, "h": 3.6e9}
_PART = re.compile(r"([0-9]*)(\.[0-9]*)?([^0-9.]*)", re.ASCII)
_LONGEST = timedelta(microseconds=(2**63 - 1) // 1000)


def parse(text: str) -> timedelta:
    """A duration such as `90s`, `1h30m`, `-1.5h` or `0`, rounded to microseconds.

    Raises ValueError with Go's own words.
    """
    rest = text[1:] if text[:1] in ("+", "-") else text
    if rest == "0":
        return timedelta()
    if not rest:
        raise ValueError(f"time: invalid duration {quote(text)}")
    microseconds = 0.0
    position = 0
    while position < len(rest):
        match = _PART.match(rest, position)
        if match is None or not (match[1] or (match[2] or "").strip(".")):
            raise ValueError(f"time: invalid duration {quote(text)}")
        if not match[3]:
            raise ValueError(f"time: missing unit in duration {quote(text)}")
        if match[3] not in _UNITS:
            raise ValueError(f"time: unknown unit {quote(match[3])} in duration {quote(text)}")
        microseconds += float((match[1] or "0") + (match[2] or "")) * _UNITS[match[3]]
        position = match.end()
    if microseconds > _LONGEST / timedelta(microseconds=1):
        raise ValueError(f"time: invalid duration {quote(text)}")
    duration = timedelta(microseconds=microseconds)
    return -duration if text.startswith("-") else duration


def text(duration: timedelta) -> str:
    """The duration as Go prints it: `1h30m0s`, `1.5s`, `20ms`, `0s`."""
    microseconds = duration // timedelta(microseconds=1)
    sign, microseconds = ("-", -microseconds) if microseconds < 0 else ("", microseconds)
    if microseconds < 1000:
        return f"{sign}{microseconds}µs" if microseconds else "0s"
    if microseconds < 1_000_000:
        return f"{sign}{_decimal(microseconds, 1000)}ms"
    minutes, rest = divmod(microseconds, 60_000_000)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{_decimal(rest, 1_000_000)}s"
    if hours:
        return f"{sign}{hours}h{minutes}m{seconds}"
    return f"{sign}{minutes}m{seconds}" if minutes else f"{sign}{seconds}"


def _decimal(value: int, unit: int) -> str:
    whole, rest = divmod(value, unit)
    fraction = str(rest).zfill(len(str(unit)) - 1).rstrip("0")
    return f"{whole}.{fraction}" if fraction else str(whole)
