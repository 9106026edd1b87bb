"""What the kernel says of a process: its user, groups, and its program when asked for."""

from __future__ import annotations

import asyncio
import grp
import hashlib
import os
import pwd
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from attestors import processes
from attestors.turns import Turns
from identity.selectors import Selector
from operations.errors import Refused
from plugins.workloadattestor import WorkloadAttestor
from transport.peer import Process

if TYPE_CHECKING:
    from plugins.catalog import PluginContext

_WORKERS = 4
_READERS = 8
_READERS_OF_A_USER = 2
_MOST_GROUPS = 4096
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
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="unix-attestor-programs")
        self._turns = Turns(_READERS_OF_A_USER)
        self._users = _Names(lambda uid: pwd.getpwuid(uid).pw_name)
        self._groups = _Names(lambda gid: grp.getgrgid(gid).gr_name)

    async def attest(self, process: Process) -> Sequence[Selector]:
        """Raises NotFound when the process is gone, Refused when it may not be examined or is another one."""
        # The kernel answers this from memory, so it needs no thread.
        owner = processes.owner(process.pid)
        processes.require_owner(process, owner)
        _require_few(owner, process.pid)
        loop = asyncio.get_running_loop()
        if not (self._users.know((owner.uid,)) and self._groups.know((owner.gid, *owner.groups))):
            await loop.run_in_executor(self._workers, self._learn, owner)
        found = self._describe(owner)
        if self._configuration.discover_workload_path:
            found += await self._program(process)
        # Last: a pid that is still the same process's has been so all the time.
        processes.require_running(process)
        return [Selector(self.name, f"{kind}:{value}") for kind, value in found]

    async def _program(self, process: Process) -> list[tuple[str, str]]:
        """The program's selectors. A user whose programs take long to read waits for them, and nobody else does."""
        given_up = threading.Event()
        async with self._turns.of(process.uid):
            try:
                return await asyncio.get_running_loop().run_in_executor(
                    self._readers, _program, process.pid, self._configuration.workload_size_limit, given_up
                )
            finally:
                given_up.set()

    def _learn(self, owner: processes.Owner) -> None:
        self._users.learn((owner.uid,))
        self._groups.learn((owner.gid, *owner.groups))

    def _describe(self, owner: processes.Owner) -> list[tuple[str, str]]:
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
        self._lock = threading.Lock()
        self._names: dict[int, tuple[float, str]] = {}

    def know(self, numbers: Iterable[int]) -> bool:
        oldest = time.monotonic() - _NAMES_LIFE
        return all(number in self._names and self._names[number][0] >= oldest for number in numbers)

    def name(self, number: int) -> str:
        """Empty where the system knows none."""
        return self._names[number][1]

    def learn(self, numbers: Iterable[int]) -> None:
        """Blocks. Several threads may do so at once."""
        names = {number: self._ask(number) for number in numbers}
        now = time.monotonic()
        with self._lock:
            if len(self._names) > _MOST_NAMES:
                self._names = {each: known for each, known in self._names.items() if known[0] >= now - _NAMES_LIFE}
            self._names.update((number, (now, name)) for number, name in names.items())

    def _ask(self, number: int) -> str:
        try:
            return self._look_up(number)
        except (KeyError, OSError):
            return ""


def _require_few(owner: processes.Owner, pid: int) -> None:
    """Linux allows 65,536 groups, and in a user namespace of their own all users may have them."""
    if len(owner.groups) > _MOST_GROUPS:
        raise Refused(f"process {pid} is in {len(owner.groups)} groups; at most {_MOST_GROUPS} are looked at")


def _program(pid: int, size_limit: int, given_up: threading.Event) -> list[tuple[str, str]]:
    link = processes.path_of(pid, "exe")
    try:
        found = [("path", str(Path(link).readlink()))]
        if size_limit >= 0:
            found.append(("sha256", _sha256(link, size_limit, given_up)))
        return found
    except OSError as error:
        raise Refused(f"cannot read the program of process {pid}: {error.strerror}") from error


def _sha256(path: str, limit: int, given_up: threading.Event) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:  # noqa: PTH123 - the magic link itself, never what its text names
        size = os.fstat(file.fileno()).st_size
        if limit and size > limit:
            raise Refused(f"{path} exceeds workload_size_limit ({size} > {limit} bytes)")
        while chunk := file.read(_CHUNK):
            if given_up.is_set():
                raise Refused(f"{path} took too long to read: set workload_size_limit")
            digest.update(chunk)
    return digest.hexdigest()


async def load(configuration: Configuration, _context: PluginContext) -> WorkloadAttestor:
    return UnixAttestor(configuration)
