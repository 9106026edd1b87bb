"""`container_id_cgroup_matchers`: patterns of cgroup paths in which `<id>` stands for the container's id. No I/O.

A pattern is compared segment by segment; `*` stands for any one segment, an empty one too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

from operations.errors import InvalidArgument, Refused
from operations.quoting import quote

_ID = "<id>"
_ANY = "*"

Pattern = tuple[str, ...]


def parse(texts: Sequence[str]) -> Sequence[Pattern]:
    """Raises InvalidArgument for a pattern without exactly one `<id>`, and for two that can match the same path."""
    patterns = [tuple(text.split("/")) for text in texts]
    for text, pattern in zip(texts, patterns, strict=True):
        if pattern.count(_ID) != 1:
            raise InvalidArgument(f'pattern {quote(text)} must contain the container id token "{_ID}" exactly once')
    for one, other in combinations(patterns, 2):
        if _overlap(one, other):
            both = f"{quote('/'.join(one))} and {quote('/'.join(other))}"
            raise InvalidArgument(f"dockerfinder: patterns must not be ambiguous: {both} match the same paths")
    return patterns


def container_id(patterns: Sequence[Pattern], paths: Iterable[bytes]) -> str:
    """The id that the patterns find in a process's cgroups; empty where none matches.

    Raises Refused when the paths name several, or a pattern matches at an empty segment.
    """
    found = ""
    matched = False
    for path in paths:
        candidate = _find(patterns, path.decode(errors="surrogateescape").split("/"))
        if candidate is None:
            continue
        matched = True
        if found and candidate != found:
            raise Refused(f"multiple container IDs found in cgroups ({quote(found)}, {quote(candidate)})")
        found = candidate
    if matched and not found:
        raise Refused("a pattern matched, but no container id was found")
    return found


def _find(patterns: Sequence[Pattern], segments: Sequence[str]) -> str | None:
    for pattern in patterns:
        if len(pattern) == len(segments) and all(map(_matches, pattern, segments)):
            return segments[pattern.index(_ID)]
    return None


def _matches(token: str, segment: str) -> bool:
    return token in (_ANY, _ID, segment)


def _overlap(one: Pattern, other: Pattern) -> bool:
    """Whether a path can match both: they are as long, and differ only where one of them takes anything."""
    wild = (_ANY, _ID)
    return len(one) == len(other) and all(a == b or a in wild or b in wild for a, b in zip(one, other, strict=True))
