"""A running process as the kernel tells of it (proc(5))."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_LISTEN = "0A"
_CLOSE = "07"  # what a UDP socket's state is, unless it is connected


def descriptors(pid: int) -> list[str]:
    """What each open descriptor refers to."""
    found: list[str] = []
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(str(each.readlink()))
    return found


def listening_ports(pid: int) -> set[int]:
    """TCP ports that the process listens on and UDP ports that it receives on, IPv4 and IPv6."""
    mine = set(descriptors(pid))
    found: set[int] = set()
    for name, state in (("tcp", _LISTEN), ("tcp6", _LISTEN), ("udp", _CLOSE), ("udp6", _CLOSE)):
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == state and f"socket:[{fields[9]}]" in mine:
                found.add(int(fields[1].rpartition(":")[2], 16))
    return found


def memory(pid: int) -> int:
    """Resident bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_memory(pid: int) -> int:
    """The most resident bytes it ever had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise LookupError("VmHWM")
