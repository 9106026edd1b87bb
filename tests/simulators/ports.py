"""TCP ports that nobody else takes between being found free and being listened on.

The kernel gives no port below its ephemeral range to whoever asks for any. Of those, each process that runs tests has
a block to itself, whichever run or user it is of: it holds an abstract Unix socket with the block's name, which belongs
to the network namespace as ports do, and goes with the process (ip(7), ip_local_port_range; unix(7)).
"""

from __future__ import annotations

import functools
import itertools
import random
import socket
from collections.abc import Iterator
from pathlib import Path

_LOWEST = 10_000
_HIGHEST = 60_000
_BLOCK = 200


def free_port() -> int:
    """A port on the loopback that nobody listens on, and that no other test gets soon."""
    for port in itertools.islice(_block(), _BLOCK):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("all ports of this process's block are taken")


@functools.cache
def _block() -> Iterator[int]:
    """This process's ports, round and round."""
    ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    # Where the kernel takes any port, none is safe from it; but most are free.
    highest = ephemeral if ephemeral >= 2 * _LOWEST else _HIGHEST
    firsts = range(_LOWEST, highest - _BLOCK + 1, _BLOCK)
    for first in random.sample(firsts, len(firsts)):
        holder = socket.socket(socket.AF_UNIX)
        try:
            holder.bind(f"\0spire-test-ports-{first}")
        except OSError:
            holder.close()
            continue
        holder.detach()  # held until the process ends
        return itertools.cycle(range(first, first + _BLOCK))
    raise AssertionError(f"every block of ports below {highest} is held by another process that runs tests")
