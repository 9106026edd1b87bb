"""What the kernel says of a process: its user, groups, and its program when asked for."""

from __future__ import annotations

import asyncio
import grp
import hashlib
import os
import pwd
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
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
_NAMES_LIFE = 10.0
_MOST_NAMES = 4096


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
        self._users = _Names(lambda uid: pwd.getpwuid(uid).pw_name)
        self._groups = _Names(lambda gid: grp.getgrgid(gid).gr_name)

    async def attest(self, process: Process) -> Sequence[Selector]:
        """Raises NotFound when the process is gone, Refused when it may not be examined or is another one."""
        # The kernel answers this from memory, so it needs no thread.
        owner = _owner(process.pid)
        loop = asyncio.get_running_loop()
        if not (self._users.know((owner.uid,)) and self._groups.know((owner.gid, *owner.groups))):
            await loop.run_in_executor(self._workers, self._learn, owner)
        found = self._describe(owner)
        if self._configuration.discover_workload_path:
            limit = self._configuration.workload_size_limit
            found += await loop.run_in_executor(self._workers, _program, process.pid, limit)
        # Last: a pid that is still the same process's has been so all the time.
        processes.require_same(process)
        return [Selector(self.name, f"{kind}:{value}") for kind, value in found]

    def _learn(self, owner: _Owner) -> None:
        self._users.learn((owner.uid,))
        self._groups.learn((owner.gid, *owner.groups))

    def _describe(self, owner: _Owner) -> list[tuple[str, str]]:
        found = [
            ("uid", str(owner.uid)),
            ("user", self._users.name(owner.uid)),
            ("gid", str(owner.gid)),
            ("group", self._groups.name(owner.gid)),
        ]
        for gid in owner.groups:
            found += [("supplementary_gid", str(gid)), ("supplementary_group", self._groups.name(gid))]
        return [(kind, value) for kind, value in found if value]


class _Names:
    """What the system calls a user or group, remembered for a moment: directories may be slow to answer."""

    def __init__(self, look_up: Callable[[int], str]) -> None:
        self._look_up = look_up
        self._names: dict[int, tuple[float, str]] = {}

    def know(self, numbers: Iterable[int]) -> bool:
        oldest = time.monotonic() - _NAMES_LIFE
        return all(number in self._names and self._names[number][0] >= oldest for number in numbers)

    def name(self, number: int) -> str:
        """Empty where the system knows none."""
        return self._names[number][1]

    def learn(self, numbers: Iterable[int]) -> None:
        """Blocks."""
        if len(self._names) > _MOST_NAMES:
            oldest = time.monotonic() - _NAMES_LIFE
            self._names = {number: known for number, known in self._names.items() if known[0] >= oldest}
        for number in numbers:
            try:
                name = self._look_up(number)
            except (KeyError, OSError):
                name = ""
            self._names[number] = time.monotonic(), name


@dataclass(frozen=True, slots=True)
class _Owner:
    uid: int
    gid: int
    groups: tuple[int, ...]


def _owner(pid: int) -> _Owner:
    status = processes.read(pid, "status")
    try:
        # Real, effective, saved and file system ids (proc(5)).
        uid, gid = int(_field(status, b"Uid")[1]), int(_field(status, b"Gid")[1])
        return _Owner(uid, gid, tuple(int(each) for each in _field(status, b"Groups")))
    except (IndexError, ValueError) as error:
        raise Refused(f"/proc/{pid}/status cannot be understood") from error


def _field(status: bytes, name: bytes) -> list[bytes]:
    """A line's values. No line begins with what a process calls itself: the kernel escapes its newlines."""
    return status.partition(b"\n" + name + b":")[2].partition(b"\n")[0].split()


def _program(pid: int, size_limit: int) -> list[tuple[str, str]]:
    link = processes.path_of(pid, "exe")
    try:
        found = [("path", str(Path(link).readlink()))]
        if size_limit >= 0:
            found.append(("sha256", _sha256(link, size_limit)))
        return found
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
