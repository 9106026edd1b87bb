"""What Linux knows of this process, under the names of Prometheus's client libraries (proc(5))."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

_UNLIMITED = float(2**64 - 1)


def process_stats() -> Iterator[tuple[str, str, float]]:
    """Kind, name and value of each."""
    # Behind the command's name, which may hold anything: fields 3 and on.
    fields = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    yield "counter", "process_cpu_seconds_total", usage.ru_utime + usage.ru_stime
    yield "gauge", "process_open_fds", sum(1 for _ in Path("/proc/self/fd").iterdir()) - 1
    yield "gauge", "process_max_fds", _limit(resource.RLIMIT_NOFILE)
    yield "gauge", "process_virtual_memory_bytes", float(fields[20])
    yield "gauge", "process_virtual_memory_max_bytes", _limit(resource.RLIMIT_AS)
    yield "gauge", "process_resident_memory_bytes", float(int(fields[21]) * os.sysconf("SC_PAGE_SIZE"))
    yield "gauge", "process_start_time_seconds", _boot_time() + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    received, sent = _network()
    yield "counter", "process_network_receive_bytes_total", received
    yield "counter", "process_network_transmit_bytes_total", sent


def _limit(which: int) -> float:
    soft = resource.getrlimit(which)[0]
    return _UNLIMITED if soft == resource.RLIM_INFINITY else soft


def _boot_time() -> float:
    for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
        if line.startswith("btime "):
            return float(line.split()[1])
    return 0.0


def _network() -> tuple[float, float]:
    """Bytes that the process's network namespace has received and sent (RFC 4293, ipIfStatsHCInOctets)."""
    rows = [line.split() for line in Path("/proc/self/net/netstat").read_text(encoding="ascii").splitlines()]
    for names, values in zip(rows[::2], rows[1::2], strict=False):
        if names[0] == "IpExt:":
            found = dict(zip(names, values, strict=True))
            return float(found.get("InOctets", 0)), float(found.get("OutOctets", 0))
    return 0.0, 0.0
