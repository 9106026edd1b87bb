"""Containers and pods by the patterns of SPIRE before its new locator: `use_new_container_locator = false`. No I/O."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable

from attestors.containers.identifiers import NOWHERE, Container
from operations.errors import Refused

_MARK = rb"[!-/:-@\[-`{-~]"
_OTHER = rb"[^!-/:-@\[-`{-~]"
_UID = rb"[0-9a-fA-F]{8}" + (_MARK + rb"?[0-9a-fA-F]{4}") * 3 + _MARK + rb"?[0-9a-fA-F]{12}"
_ID = rb"([0-9a-fA-F]{64})\Z"
_IN_POD = re.compile(_MARK + rb"pod(" + _UID + rb")" + _MARK + rb"(?:" + _OTHER + rb"+" + _MARK + rb")*" + _ID)
# CRI-O with KubeEdge leaves the pod out.
_CRIO = re.compile(rb"crio" + _MARK + _ID)
_POD_BEFORE = re.compile(rb"pod" + _UID + _MARK + rb"\Z")
_POD_FIRST = re.compile(rb"pod" + _UID + _MARK)
_MARKS = bytes(mark for mark in string.punctuation.encode() if mark != ord("/"))
_DASHES = bytes.maketrans(string.punctuation.encode(), b"-" * len(string.punctuation))


def of_paths(paths: Iterable[bytes]) -> Container:
    """What the paths of a process's cgroups name together. Raises Refused when two disagree."""
    known = NOWHERE
    for path in paths:
        found = of_path(path)
        if not found.container_id:
            continue
        if known.container_id and found.container_id != known.container_id:
            both = f"{known.container_id}, {found.container_id}"
            raise Refused(f"multiple container IDs found in cgroups ({both})")
        if known.container_id and found.pod_uid != known.pod_uid:
            raise Refused(f"multiple pod UIDs found in cgroups ({known.pod_uid}, {found.pod_uid})")
        known = found
    return known


def of_path(path: bytes) -> Container:
    """A path that both patterns fit names nothing."""
    path = path.removesuffix(b".scope")
    in_pod = _IN_POD.search(path)
    alone = _crio(path)
    if in_pod and not alone:
        uid, container_id = in_pod.groups()
        return Container(container_id.decode(), uid.translate(_DASHES).decode())
    if alone and not in_pod:
        return Container(alone)
    return NOWHERE


def _crio(path: bytes) -> str:
    """The container of a path without a pod, in which no pod's uid comes before the words next to `crio`."""
    found = _CRIO.search(path)
    if found is None:
        return ""
    before = path[: found.start()]
    start = 1 + max(before.rfind(mark) for mark in map(_byte, _MARKS))
    if _POD_BEFORE.search(before[:start]) or _POD_FIRST.match(before[start:]):
        return ""
    return found.group(1).decode()


def _byte(number: int) -> bytes:
    return bytes((number,))
