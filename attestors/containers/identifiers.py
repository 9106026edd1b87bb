"""The container, and the pod, that the paths of a process's cgroups name. No I/O.

/system.slice/docker-<id>.scope                              Docker, systemd driver
/docker/<id>                                                 Docker, cgroupfs driver
/user.slice/user-1000.slice/…/libpod-<id>.scope              Podman without root
/kubepods.slice/…-pod<uid with _>.slice/cri-containerd-<id>.scope   Kubernetes, systemd driver
/kubepods/besteffort/pod<uid>/<id>                           Kubernetes, cgroupfs driver
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, takewhile

from operations.errors import Refused
from operations.quoting import quote

# By convention of all engines, 256 bits in hex. \b is ASCII's: these are bytes.
_CONTAINER_ID = re.compile(rb"\b([0-9a-fA-F]{64})\b")
# A UUID, whose dashes the kubelet writes as underscores for systemd.
_POD_UID = re.compile(rb"\bpod([0-9a-fA-F]{8}(?:[-_][0-9a-fA-F]{4}){3}[-_][0-9a-fA-F]{12})\b")


@dataclass(frozen=True, slots=True)
class Container:
    """Both as they are written in the path, the pod's with dashes; empty where there is none."""

    container_id: str = ""
    pod_uid: str = ""


NOWHERE = Container()


def of_path(path: bytes, *, pods: bool = True) -> Container:
    """What one path names: the container next to its end, and the pod before that. Without `pods`, no pod."""
    segments = _segments_from_end(path)
    for segment in segments:
        if found := _CONTAINER_ID.search(segment):
            # With some runtimes the pod's uid stands in the same segment.
            before = segment[: found.start()]
            pod_uid = _pod_uid(chain([before] if before else [], segments)) if pods else ""
            return Container(found.group(1).decode(), pod_uid)
    return NOWHERE


def _pod_uid(segments: Iterable[bytes]) -> str:
    for segment in segments:
        if found := _POD_UID.search(segment):
            return found.group(1).decode().replace("_", "-")
    return ""


def _segments_from_end(path: bytes) -> Iterator[bytes]:
    """An empty segment ends them: nothing is looked for before a slash too many."""
    return takewhile(bool, reversed(path.split(b"/")))


def places(paths: Iterable[bytes], container_id: str) -> frozenset[bytes]:
    """The cgroups of a container: of each path that names it, what leads to the last segment with its id."""
    wanted = container_id.encode()
    found: set[bytes] = set()
    for path in paths:
        before, match, after = path.rpartition(wanted)
        if match:
            found.add(before + match + after.partition(b"/")[0])
    return frozenset(found)


def of_paths(paths: Iterable[bytes], *, pods: bool = True) -> Container:
    """What all the paths of a process name together.

    Paths with a pod win over those without: where nodes are containers themselves, a hierarchy that Kubernetes does not
    use names the node's container alone. Paths that name nothing count for nothing: with cgroups of both versions, those
    of version 2 may be the engine's own. Raises Refused when two paths disagree: then nothing tells which is right.
    """
    known = NOWHERE
    for path in paths:
        found = of_path(path, pods=pods)
        if not found.container_id or (known.pod_uid and not found.pod_uid):
            continue
        if found.pod_uid and not known.pod_uid:
            known = found
        if found.pod_uid != known.pod_uid:
            raise Refused(f"multiple pod UIDs found ({quote(known.pod_uid)}, {quote(found.pod_uid)})")
        if known.container_id and found.container_id != known.container_id:
            raise Refused(f"multiple container IDs found ({quote(known.container_id)}, {quote(found.container_id)})")
        known = found
    return known
