"""What the kernel says of a process: its user, groups, and its program when asked for."""

from __future__ import annotations

import asyncio
import grp
import hashlib
import os
import pwd
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import msgspec

from attestors import processes
from identity.selectors import Selector
from operations.errors import Refused
from plugins.workloadattestor import WorkloadAttestor
from transport.peer import Process

if TYPE_CHECKING:
    from plugins.catalog import PluginContext

_WORKERS = 4
_CHUNK = 1 << 20


class Configuration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`workload_size_limit` is in bytes: 0 hashes programs of any size, a negative one hashes none."""

    discover_workload_path: bool = False
    workload_size_limit: int = 0


class UnixAttestor:
    """Selectors `uid`, `user`, `gid`, `group`, `supplementary_gid`, `supplementary_group`, `path` and `sha256`.

    User and group are the effective ones. Names are left out where the system knows none. Programs are looked at in
    the caller's own mount namespace.
    """

    name = "unix"

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        # Names may come over a network and programs from a slow disk: threads of our own bound what hangs.
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="unix-attestor")

    async def attest(self, process: Process) -> Sequence[Selector]:
        """Raises NotFound when the process is gone, Refused when it may not be examined or is another one."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._workers, self._examine, process)

    def _examine(self, process: Process) -> list[Selector]:
        processes.require_same(process)
        found = [*_owner(process.pid)]
        if self._configuration.discover_workload_path:
            found += _program(process.pid, self._configuration.workload_size_limit)
        processes.require_same(process)
        return [Selector("unix", f"{kind}:{value}") for kind, value in found]


def _owner(pid: int) -> Iterator[tuple[str, str]]:
    lines = (line.partition(b":") for line in processes.read(pid, "status").splitlines())
    status = {name: value.split() for name, _, value in lines}
    try:
        # Real, effective, saved and file system ids (proc(5)).
        uid, gid = int(status[b"Uid"][1]), int(status[b"Gid"][1])
        groups = [int(each) for each in status.get(b"Groups", [])]
    except (KeyError, IndexError, ValueError) as error:
        raise Refused(f"/proc/{pid}/status cannot be understood") from error
    yield "uid", str(uid)
    if (user := _user(uid)) is not None:
        yield "user", user
    yield "gid", str(gid)
    if (group := _group(gid)) is not None:
        yield "group", group
    for each in groups:
        yield "supplementary_gid", str(each)
        if (group := _group(each)) is not None:
            yield "supplementary_group", group


def _user(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name or None
    except (KeyError, OSError):
        return None


def _group(gid: int) -> str | None:
    try:
        return grp.getgrgid(gid).gr_name or None
    except (KeyError, OSError):
        return None


def _program(pid: int, size_limit: int) -> Iterator[tuple[str, str]]:
    link = processes.path_of(pid, "exe")
    try:
        yield "path", str(link.readlink())
        if size_limit >= 0:
            yield "sha256", _sha256(str(link), size_limit)
    except OSError as error:
        raise Refused(f"cannot read the program of process {pid}: {error.strerror}") from error


def _sha256(path: str, limit: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:  # noqa: PTH123 - the magic link itself, never what its text names
        size = os.fstat(file.fileno()).st_size
        if limit and size > limit:
            raise Refused(f"{path} exceeds workload_size_limit ({size} > {limit} bytes)")
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


async def load(configuration: Configuration, _context: PluginContext) -> WorkloadAttestor:
    return UnixAttestor(configuration)
