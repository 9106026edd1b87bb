"""Where sockets that are not for workloads may be."""

from __future__ import annotations

from pathlib import Path

from operations import sections
from operations.checks import Checks


def apart_from_workloads(path: str, name: str, workload_socket: str, checks: Checks, *keys: str) -> str | None:
    """The absolute path of the socket of that name; None for none. `workload_socket` is "" where there is none.

    Workloads have the folder of their socket, often in a container's mounts: others' sockets are elsewhere.
    """
    if not path:
        return None
    made = sections.absolute(path)
    if workload_socket:
        shared = Path(sections.absolute(workload_socket)).parent
        reason = f"{name} cannot be in the same directory or a subdirectory as that containing the Workload API socket"
        checks.require(shared not in Path(made).parents, reason, *keys)
    return made
