"""Cgroups below a container's own, which are not of the kubelet's making. No I/O.

A container that may write to its cgroups can call one below by another's container and pod, and put a process into it.
The kubelet's own paths have one pod, and below it one container (ADR 0015).
"""

from __future__ import annotations

import re

from operations.errors import Refused

_POD = re.compile(rb"\bpod[0-9a-fA-F]{8}(?:[-_][0-9a-fA-F]{4}){3}[-_][0-9a-fA-F]{12}\b")
_CONTAINER_ID = re.compile(rb"\b[0-9a-fA-F]{64}\b")


def require_none(path: bytes, *, containers: bool) -> None:
    """Raise Refused for a path with several pods; with `containers`, also for several containers below its pod."""
    found = list(_POD.finditer(path))
    if not found:
        return
    _require_one("pods", {each.group().replace(b"_", b"-") for each in found})
    if containers:
        _require_one("containers", set(_CONTAINER_ID.findall(path, found[-1].end())))


def _require_one(what: str, names: set[bytes]) -> None:
    if len(names) > 1:
        listed = ", ".join(sorted(each.decode() for each in names))
        raise Refused(f"several {what} named in one cgroup path ({listed}): which of them is true cannot be told")
