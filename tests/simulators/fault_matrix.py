"""Faults by calls: what each call made of each fault, gathered from tests, a table at the end of a run.

A test is one fault; it counts its tries by call, and hands them over with `record_property(PROPERTY, row.report())`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

PROPERTY = "fault matrix"
NOT_TRIED = "-"


@dataclass(slots=True)
class Row:
    """One fault on one kind of device: the tries of each call, and what was wrong with those that failed."""

    device: str
    fault: str
    tried: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    failures: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    def count(self, call: str, failure: str | None) -> None:
        self.tried[call] += 1
        if failure is not None:
            self.failures.append((call, failure))

    def report(self) -> dict[str, Any]:
        failed = [call for call, _ in self.failures]
        cells = {call: f"{tries - failed.count(call)}/{tries}" for call, tries in self.tried.items()}
        return {"device": self.device, "fault": self.fault, "cells": cells}


def lines(device: str, reports: Iterable[Mapping[str, Any]]) -> list[str]:
    """The table of one device, as text."""
    rows = [report for report in reports if report["device"] == device]
    calls = list(dict.fromkeys(call for row in rows for call in row["cells"]))
    head = max(len(row["fault"]) for row in rows)
    widths = {call: max(len(call), 5) for call in calls}
    text = [f"{'':{head}}  " + "  ".join(f"{call:>{widths[call]}}" for call in calls)]
    for row in rows:
        cells = "  ".join(f"{row['cells'].get(call, NOT_TRIED):>{widths[call]}}" for call in calls)
        text.append(f"{row['fault']:{head}}  {cells}")
    return text


def print_tables(reporter: pytest.TerminalReporter) -> None:
    """To be called at the end of a run, where all reports come together."""
    reports: list[Mapping[str, Any]] = []
    for group in ("passed", "failed"):
        for report in reporter.stats.get(group, []):
            properties = getattr(report, "user_properties", [])
            if getattr(report, "when", None) == "call":
                reports += [value for name, value in properties if name == PROPERTY]
    for device in dict.fromkeys(report["device"] for report in reports):
        reporter.section(f"faults of {device} (survived / tried)", sep="-")
        for line in lines(device, reports):
            reporter.write_line(line)
