"""Which selectors of a workload that was turned away are written into the log (`log_selectors`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from identity.selectors import Selector

_LONGEST: Final = 4096
"""Characters: what a workload is must not fill the disk."""


def loggable(selectors: Iterable[Selector], prefixes: Sequence[str]) -> str:
    """Those that are one of the prefixes or begin with one and a colon, such as `unix:uid`, in order, by commas."""
    if not prefixes:
        return ""
    beginnings = tuple(f"{prefix}:" for prefix in prefixes)
    texts = map(str, selectors)
    text = ",".join(sorted(each for each in texts if each in prefixes or each.startswith(beginnings)))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
