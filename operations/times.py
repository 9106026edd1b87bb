"""Points in time, worded as SPIRE's commands word them."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo


def text(seconds: int, zone: tzinfo | None = UTC) -> str:
    """Unix seconds as Go prints a time: `2026-11-22 06:44:39 +0000 UTC`. Without a zone it is the machine's own."""
    try:
        return datetime.fromtimestamp(seconds, UTC).astimezone(zone).strftime("%Y-%m-%d %H:%M:%S %z %Z")
    except (ValueError, OverflowError, OSError):
        # A server may send any number; Go prints years of any length.
        return f"{seconds} s after 1970"


def rfc3339(seconds: int) -> str:
    """Unix seconds as `2026-11-22T06:44:39Z`."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
