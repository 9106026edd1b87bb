"""CPU and memory of a process with its descendants, from /proc (proc(5))."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

_TICK = 1.0 / os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            found.extend(int(child) for child in task.read_text().split())
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of the process and its descendants, those that ended included. Steps of 10 ms."""
    total = 0.0
    for member in family(pid):
        # The second field is the name in brackets, which may hold blanks.
        fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
        total += sum(int(field) for field in fields[11:15]) * _TICK
    return total


def rss_mib(pid: int) -> float:
    """Resident memory of the process and its descendants, in MiB."""
    pages = sum(int(Path(f"/proc/{member}/statm").read_text().split()[1]) for member in family(pid))
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@dataclass(frozen=True)
class Cost:
    """What a number of operations took: seconds by the clock, and CPU seconds of the process measured."""

    operations: int
    wall: float
    cpu: float

    @property
    def rate(self) -> float:
        return self.operations / self.wall

    @property
    def cpu_ms(self) -> float:
        """CPU per operation, in milliseconds."""
        return self.cpu * 1000 / self.operations


class Meter:
    """Measures one process between two moments.

    >>> with Meter(pid) as meter:
    ...     meter.operations = work()
    >>> meter.cost.cpu_ms
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.operations = 0

    def __enter__(self) -> Meter:
        self._cpu, self._wall = cpu_seconds(self._pid), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._elapsed = time.perf_counter() - self._wall
        self._used = cpu_seconds(self._pid) - self._cpu

    @property
    def cost(self) -> Cost:
        return Cost(self.operations, self._elapsed, self._used)
