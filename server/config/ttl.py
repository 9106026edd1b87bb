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
    guarantee = f"to guarantee the full {name} lifetime when CA rotations are scheduled."
    if ttl < _CAP:
        return (
            f"{name} is too high for the configured ca_ttl value. SVIDs with shorter lifetimes may be issued. "
            f"Please set {name} to {_text(min(ca_ttl / _SHARE, _CAP))} or less, or the ca_ttl to "
            f"{_text(ttl * _SHARE)} or more, {guarantee}"
        )
    if ca_ttl < _CAP * _SHARE:
        return (
            f"{name} is too high and the ca_ttl is too low. SVIDs with shorter lifetimes may be issued. "
            f"Please set {name} to {_text(_CAP)} or less, and the ca_ttl to {_text(_CAP * _SHARE)} or more, {guarantee}"
        )
    return (
        f"{name} is too high. SVIDs with shorter lifetimes may be issued. "
        f"Please set {name} to {_text(_CAP)} or less {guarantee}"
    )


def _text(value: timedelta) -> str:
    text = duration.text(timedelta(seconds=value // timedelta(seconds=1)))
    if text.endswith("m0s"):
        text = text.removesuffix("0s")
    return text.removesuffix("0m") if text.endswith("h0m") else text
