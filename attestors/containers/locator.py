"""In which container, and in which pod, a process runs, as the kernel has it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from attestors import processes
from attestors.containers import identifiers, proc_files
from attestors.containers.identifiers import NOWHERE, Container
from attestors.turns import Turns
from operations.errors import NotFound
from operations.logs import Logger
from transport.peer import Process

__all__ = ["NOWHERE", "Container", "Workers", "cgroups", "container_of", "locate"]

T = TypeVar("T")

_WORKERS = 4
_OF_A_USER = 2

# The most groups that Linux allows in the longest paths would be more; engines make some hundred bytes.
_CGROUP_LIMIT = 1 << 20
# A process may make 100,000 mounts in a namespace of its own (fs.mount-max), each with a page of options.
_MOUNTINFO_LIMIT = 8 << 20

# The first cgroup namespace's inode, the same on every Linux (CGROUP_NS_INIT_INO in its linux/nsfs.h).
_HOSTS_CGROUP_NAMESPACE = 0xEFFFFFFB
_OWN = b"/"


class Workers:
    """Threads on which /proc is read, which may be large; one user's processes wait for each other."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_WORKERS, thread_name_prefix="container-locator")
        self._turns = Turns(_OF_A_USER)

    def close(self) -> None:
        """Nothing is asked any more. What is being read is read to its end, and nobody waits for it."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def ask(self, process: Process, question: Callable[[int], T]) -> T:
        """What the question, which may block, says of the process's pid. Raises what it raises.

        Raises NotFound or Refused when the pid is no longer that process's.
        """
        async with self._turns.of(process.uid):
            answer = await asyncio.get_running_loop().run_in_executor(self._threads, question, process.pid)
        # A pid that is still the same process's has been so all the time.
        processes.require_running(process)
        return answer


def locate(pid: int, *, pods: bool = True, log: Logger | None = None) -> Container:
    """The process's container and pod; empty strings for one outside of containers, and for one that is gone.

    Blocks: call it in a thread. Raises Refused when the files cannot be read or understood, are too large, or name
    several containers or pods.
    """
    return container_of(pid, cgroups(pid, log=log), pods=pods, log=log)


def container_of(pid: int, groups: Sequence[bytes], *, pods: bool = True, log: Logger | None = None) -> Container:
    """As `locate`, of a process whose cgroups are known."""
    found = identifiers.of_paths(groups, pods=pods)
    if found.container_id or not _may_hide(groups):
        return found
    return identifiers.of_paths(_cgroup_roots(pid, log), pods=pods)


def cgroups(pid: int, *, log: Logger | None = None) -> Sequence[bytes]:
    """The paths of the process's cgroups; none for a process that is gone, and where the kernel has no cgroups."""
    try:
        paths = proc_files.cgroup_paths(processes.read(pid, "cgroup", limit=_CGROUP_LIMIT))
    except NotFound:
        return ()
    if log is not None:
        for index, path in enumerate(paths, 1):
            log.debug("PID cgroup enumerated", index=index, total=len(paths), path=_text(path))
    return paths


def _may_hide(groups: Sequence[bytes]) -> bool:
    """Whether the process's mounts may name a container that its cgroups do not.

    A process makes its mounts itself, without any rights in a user namespace of its own, and may mount the cgroup of
    another's container. They are asked only where its cgroups cannot tell: when they are those of the agent's own
    container (ADR 0014).
    """
    return _in_container() and all(path == _OWN for path in groups)


def _in_container() -> bool:
    """Whether the agent sees cgroups from within a container's namespace, where its own have the path `/`."""
    try:
        return Path("/proc/self/ns/cgroup").stat().st_ino != _HOSTS_CGROUP_NAMESPACE
    except OSError:
        return False


def _cgroup_roots(pid: int, log: Logger | None) -> Sequence[bytes]:
    """The cgroups that are mounted where the process runs, without the root of all: that one names none."""
    try:
        mounts = proc_files.mounts(processes.read(pid, "mountinfo", limit=_MOUNTINFO_LIMIT))
    except NotFound:
        return ()
    if log is not None:
        for index, mount in enumerate(mounts, 1):
            log.debug(
                "PID mount enumerated",
                index=index,
                total=len(mounts),
                type=_text(mount.type),
                root=_text(mount.root),
            )
    return [mount.root for mount in mounts if mount.is_cgroup and mount.root != b"/"]


def _text(value: bytes) -> str:
    return value.decode(errors="replace")
