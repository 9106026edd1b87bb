"""Flag values as the API wants them. All raise InvalidArgument."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar

from generated.spire.api.types import selector_pb2, spiffeid_pb2
from identity.spiffeid import SpiffeId
from operations.errors import InvalidArgument
from operations.flags import Flag
from operations.quoting import quote

Selector = selector_pb2.Selector
SelectorMatch = selector_pb2.SelectorMatch
Behavior = SelectorMatch.MatchBehavior

T = TypeVar("T")

BEHAVIORS = {
    "exact": SelectorMatch.MATCH_EXACT,
    "any": SelectorMatch.MATCH_ANY,
    "superset": SelectorMatch.MATCH_SUPERSET,
    "subset": SelectorMatch.MATCH_SUBSET,
}


def match_usage(flag: str) -> str:
    """Describes the flag beside `flag` whose value `behavior` reads."""
    return (
        f"How {flag} matches: superset (all of them, maybe more), exact (all of them, no more), subset (none but "
        "them), any (at least one of them)"
    )


def spiffe_id(text: str) -> spiffeid_pb2.SPIFFEID:
    return SpiffeId.parse(text).to_proto()


def selector(text: str) -> Selector:
    """`type:value`; the value may hold colons, and be empty."""
    kind, colon, value = text.partition(":")
    if not colon:
        raise InvalidArgument(f"selector {quote(text)} must be formatted as type:value")
    return Selector(type=kind, value=value)


def behavior(flag: Flag[str], complaint: str = "match behavior %s unknown") -> Behavior.ValueType:
    if flag.value not in BEHAVIORS:
        raise InvalidArgument(complaint.replace("%s", quote(flag.value)))
    return BEHAVIORS[flag.value]


def int32(value: int, what: str) -> int:
    if not -(2**31) <= value < 2**31:
        raise InvalidArgument(f"invalid value for {what}: {value} is out of range, use at most {2**31 - 1}")
    return value


def ttl(value: timedelta) -> int:
    """Whole seconds, rounded up."""
    return int32(-(-value // timedelta(seconds=1)), "TTL")


def explained(reason: str, read: Callable[[str], T], values: Sequence[str]) -> list[T]:
    """`read` on every value; a failure gets `reason`, in which %s is the value in quotes, before its own text."""
    found: list[T] = []
    for value in values:
        try:
            found.append(read(value))
        except InvalidArgument as error:
            raise InvalidArgument(f"{reason.replace('%s', quote(value))}: {error}") from error
    return found
