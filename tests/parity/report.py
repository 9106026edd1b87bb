"""Writes docs/parity.md: `python -m tests.parity.report [FILE]`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.parity.rows import ROOT, Row, Standing, reasons, rows

INTRODUCTION = """# Parity with SPIRE 1.16

Made from the code by `make generate`, and held to it by a test: what SPIRE 1.16 has by name, and how it stands here.
A command works when it takes every flag, a method when it is served to the same callers, a setting when code reads
it, a plugin when it is built in with every setting. What is refused is refused when a configuration is checked or a
command is typed, with a line that names it; nothing is ignored in silence but what stands below as without effect.
"""


def report() -> str:
    lists = rows()
    why = reasons()
    parts = [INTRODUCTION, "\n".join(_summary(lists))]
    for title, found in lists.items():
        parts.append(f"## {title}\n")
        parts.append("\n".join(_works(found)))
        for standing in (Standing.REFUSED, Standing.NO_EFFECT):
            lines = [_line(row, why) for row in found if row.standing is standing]
            if lines:
                parts.append("\n".join([f"| {standing.value} | why |", "|---|---|", *lines]) + "\n")
    return "\n".join(parts)


def _summary(lists: Mapping[str, list[Row]]) -> Iterator[str]:
    yield "| | rows | work | refused by name | without effect |"
    yield "|---|---|---|---|---|"
    for title, found in lists.items():
        count = Counter(row.standing for row in found)
        cells = (count[standing] for standing in (Standing.WORKS, Standing.REFUSED, Standing.NO_EFFECT))
        yield f"| {title} | {len(found)} | {' | '.join(map(str, cells))} |"
    yield ""


def _works(found: list[Row]) -> Iterator[str]:
    """Names of what works, a line for each first word or service."""
    groups: dict[str, list[str]] = {}
    for row in found:
        if row.standing is Standing.WORKS:
            head, _, tail = row.name.rpartition("/") if "/" in row.name else row.name.partition(" ")
            groups.setdefault(head, []).append(f"`{tail}`")
    for head, tails in groups.items():
        yield f"- `{head}`: {', '.join(tails)}"
    yield ""


def _line(row: Row, why: dict[str, str]) -> str:
    reason = reason_of(row, why)
    missing = f" ({row.missing})" if row.missing and not row.missing.startswith("the ") else ""
    return f"| `{row.name}`{missing} | {reason} |"


def reason_of(row: Row, why: dict[str, str]) -> str:
    """The reason whose name is the longest beginning of the row's."""
    fitting = [name for name in why if row.name == name or row.name.startswith(name)]
    assert fitting, f"{row.name} is {row.standing.value}: say why in tests/parity/reasons.txt"
    return why[max(fitting, key=len)]


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "parity.md"
    target.write_text(report())
