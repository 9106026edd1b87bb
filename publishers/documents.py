"""The forms in which a bundle is published; names and meaning are those of SPIRE's publishers."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

from identity.bundles import Bundle
from operations import duration
from operations.errors import InvalidArgument
from operations.quoting import quote

FORMATS = ("spiffe", "jwks", "pem")

_TYPES = {"spiffe": "application/json", "jwks": "application/jwk-set+json", "pem": "application/x-pem-file"}


def check(format: str, refresh_hint: str) -> None:
    """Raises InvalidArgument."""
    if format not in FORMATS:
        said = f"format {quote(format)} is unknown" if format else "format is missing"
        raise InvalidArgument(f"{said}: use spiffe, jwks or pem")
    if refresh_hint:
        _seconds(refresh_hint)
        if format != "spiffe":
            raise InvalidArgument(f"refresh_hint has no place in the format {format}: use spiffe, or remove it")


def render(bundle: Bundle, format: str, refresh_hint: str = "") -> bytes:
    """The document. The same bundle gives the same bytes. Raises InvalidArgument for an authority that is broken."""
    if format == "pem":
        return bundle.to_pem().encode()
    if refresh_hint:
        bundle = replace(bundle, refresh_hint=_seconds(refresh_hint))
    return (bundle.to_jwks(standard=format == "jwks") + "\n").encode()


def content_type(format: str) -> str:
    return _TYPES[format]


def event(kind: str, bundle: Bundle) -> bytes:
    """What a program over the web is told, in JSON: `kind` is bundle_loaded or bundle_updated."""
    told: dict[str, Any] = {
        "event": kind,
        "trust_domain": bundle.trust_domain.name,
        "sequence_number": bundle.sequence_number,
        "bundle": json.loads(bundle.to_jwks()),
    }
    return (json.dumps(told, indent=4) + "\n").encode()


def _seconds(text: str) -> int:
    try:
        found = duration.parse(text)
    except ValueError as error:
        raise InvalidArgument(f"refresh_hint {quote(text)} is no duration such as 5m: {error}") from error
    if found < timedelta(seconds=1):
        raise InvalidArgument(f"refresh_hint {quote(text)} must be a second or longer")
    return int(found.total_seconds())
