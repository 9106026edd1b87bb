"""What a process holds over time: memory and descriptors, and whether either grows."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

INTERVAL = 2.0
SETTLED = 1 / 3
"""The part of the run in which caches, pools and the allocator find their size."""

MOST_GROWTH = 1.10
SLACK_MIB = 4.0
SLACK_DESCRIPTORS = 8


@dataclass
class Record:
    """Samples of one process, in order. Memory is in MiB."""

    name: str
    pid: int
    memory: list[float] = field(default_factory=list[float])
    descriptors: list[int] = field(default_factory=list[int])

    def take(self) -> None:
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        self.memory.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
        self.descriptors.append(len(os.listdir(f"/proc/{self.pid}/fd")))  # noqa: PTH208 names are enough

    def check(self) -> None:
        """Raises AssertionError when the end of the run holds more than its middle did."""
        (memory, memory_end), (files, files_end) = middle_and_end(self.memory), middle_and_end(self.descriptors)
        assert memory_end <= memory * MOST_GROWTH + SLACK_MIB, f"{self.name} has grown: {self}"
        assert files_end <= files + SLACK_DESCRIPTORS, f"{self.name} keeps descriptors: {self}"

    def __str__(self) -> str:
        (memory, memory_end), (files, files_end) = middle_and_end(self.memory), middle_and_end(self.descriptors)
        return f"{self.name} {memory:.1f} -> {memory_end:.1f} MiB, {files:.0f} -> {files_end:.0f} descriptors"


def middle_and_end(samples: list[float] | list[int]) -> tuple[float, float]:
    """The medians of the third after the beginning and of the last one."""
    first, second = int(len(samples) * SETTLED), int(len(samples) * (1 + SETTLED) / 2)
    return median(samples[first:second]), median(samples[second:])


async def sample(records: list[Record]) -> None:
    """Until cancelled."""
    while True:
        for record in records:
            record.take()
        await asyncio.sleep(INTERVAL)
