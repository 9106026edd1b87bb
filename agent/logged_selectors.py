"""Selectors in the log: as many as fit, and of a workload that is turned away those that `log_selectors` names."""

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
    return shortened(each for each in texts if each in prefixes or each.startswith(beginnings))


def shortened(texts: Iterable[str]) -> str:
    """In order, by commas."""
    text = ",".join(sorted(texts))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
