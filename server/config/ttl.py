"""Lifetimes that a CA rotation can cut short, and the words that say so."""

from __future__ import annotations

from datetime import timedelta

from operations import duration

# A CA is replaced when a sixth of its life is left, but never earlier than seven days before its end.
_SHARE = 6
_CAP = timedelta(days=7)


def ttl_warning(name: str, ttl: timedelta, ca_ttl: timedelta) -> str | None:
    """Why SVIDs may live shorter than the setting `name` says, and what to set instead."""
    if ttl <= min(ca_ttl / _SHARE, _CAP):
        return None
    shortened = f"{name} is {_text(ttl)}, but an SVID ends with its CA and may get less of it: "
    if ttl < _CAP:
        return f"{shortened}lower {name} to {_text(ca_ttl / _SHARE)}, or raise ca_ttl to {_text(ttl * _SHARE)}"
    if ca_ttl < _CAP * _SHARE:
        return f"{shortened}lower {name} to {_text(_CAP)}, and raise ca_ttl to {_text(_CAP * _SHARE)}"
    return f"{shortened}lower {name} to {_text(_CAP)}"


def _text(value: timedelta) -> str:
    text = duration.text(timedelta(seconds=value // timedelta(seconds=1)))
    if text.endswith("m0s"):
        text = text.removesuffix("0s")
    return text.removesuffix("0m") if text.endswith("h0m") else text
