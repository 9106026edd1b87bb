"""Settings that tune SPIRE's caches and their events. Entries are always current here, so they have nothing to tune."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

from operations import duration
from operations.checks import Checks
from operations.quoting import quote
from server.config.file import Experimental

DURATIONS = (
    "cache_reload_interval",
    "full_cache_reload_interval",
    "prune_events_older_than",
    "event_timeout",
    "sql_transaction_timeout",
)


def check(experimental: Experimental, checks: Checks) -> None:
    """They may stand in a file, as what they ask for is given anyway; what cannot be read is refused all the same."""
    for name in DURATIONS:
        text: str = getattr(experimental, name)
        if text:
            words = f"experimental.{name} {quote(text)} is no duration such as 5s: "
            checks.attempt(partial(duration.parse, text), timedelta(), f"experimental.{name}", words)
