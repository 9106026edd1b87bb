"""What it costs to have a key store served as a plugin: the start, and each signature, by transport/ and by grpcio.

    python -m bench.served_rate [--signatures 5000] [--rounds 3]

Keys are in memory, so that the transport is what shows. Both plugins are hosted by plugins/external; CPU is the
plugin's own.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import logging
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from operations.hcl import Body, Position
from plugins.blocks import PluginBlock
from plugins.external.loading import ExternalPlugins
from plugins.keymanager import Hash, KeyManager, KeyType, Scheme
from server.catalog import FACADES

PLUGINS: Final = {"transport/": "tests.simulators.served", "grpcio": "tests.simulators.plugin"}
_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cost:
    """Milliseconds, but for `resident`, in KiB."""

    start: float
    start_cpu: float
    resident: int
    signature: float
    signature_cpu: float

    def __str__(self) -> str:
        return (
            f"configured after {self.start:5.0f} ms, {self.start_cpu:4.0f} ms CPU, {self.resident / 1024:4.0f} MiB; "
            f"a signature {self.signature:6.3f} ms, {self.signature_cpu:6.3f} ms CPU"
        )


def _cpu(pid: int) -> float:
    """Milliseconds, user and system (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS * 1000


def _resident(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status[status.index("VmRSS:") :].split()[1])


def _child() -> int:
    [pid] = [int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()]
    return pid


async def measure(module: str, signatures: int) -> Cost:
    place = Position("bench", 1)
    block = PluginBlock(
        type="KeyManager",
        name="bench",
        data=Body((), place, ""),
        position=place,
        command=sys.executable,
        args=("-m", module),
        data_text="",
    )
    began = time.perf_counter()
    manager: KeyManager = await ExternalPlugins(FACADES, tuple).load(block, "example.org")
    start, pid = (time.perf_counter() - began) * 1000, _child()
    start_cpu, resident = _cpu(pid), _resident(pid)
    key = await manager.generate("bench", KeyType.EC_P256)
    digests = [hashlib.sha256(b"%d" % number).digest() for number in range(signatures)]
    cpu, began = _cpu(pid), time.perf_counter()
    await key.sign_batch(digests, Scheme(Hash.SHA256))
    signature = (time.perf_counter() - began) * 1000 / signatures
    cost = Cost(start, start_cpu, resident, signature, (_cpu(pid) - cpu) / signatures)
    await manager.close()
    return cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--signatures", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # of the checksums that these have not
    for _ in range(arguments.rounds):
        for name, module in PLUGINS.items():
            print(f"{name:10} {asyncio.run(measure(module, arguments.signatures))}")


if __name__ == "__main__":
    main()
