"""What the kernel says of a process: its user, groups, and its program when asked for."""

from __future__ import annotations

import grp
import os
import pwd
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from attestors import processes, programs
from attestors.names import Names
from attestors.threads import Threads
from identity.selectors import Selector
from operations.errors import Refused
from operations.quoting import quote
from plugins.workloadattestor import WorkloadAttestor
from transport.peer import Process

if TYPE_CHECKING:
    from plugins.catalog import PluginContext

_THREADS = 32
_OF_A_USER = 2
_MOST_GROUPS = 4096


class Configuration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`workload_size_limit` is in bytes: 0 hashes programs of any size, a negative one hashes none."""

    discover_workload_path: bool = False
    workload_size_limit: int = 0


class UnixAttestor:
    """Selectors `uid`, `user`, `gid`, `group`, `supplementary_gid`, `supplementary_group`, `path` and `sha256`.

    User and group are the effective ones. Names are left out where the system knows none. Programs are looked at in
    the caller's own mount namespace, and named as they are called there: users may make such namespaces, and in them
    call a program of theirs what they like, so that a path tells something together with `uid` or `sha256` only.
    """

    name = "unix"

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        # Names may come over a network and programs from a slow disk, or a user's own file system.
        self._askers = Threads("unix-attestor-names", most=_THREADS, each=_OF_A_USER)
        self._readers = Threads("unix-attestor-programs", most=_THREADS, each=_OF_A_USER)
        self._users = Names(lambda uid: pwd.getpwuid(uid).pw_name)
        self._groups = Names(lambda gid: grp.getgrgid(gid).gr_name)
        self._foreign_uid = processes.foreign_id("uid")
        self._foreign_gid = processes.foreign_id("gid")

    async def attest(self, process: Process) -> Sequence[Selector]:
        """Raises NotFound when the process is gone, Refused when it may not be examined or is another one."""
        # The kernel answers this from memory, so it needs no thread.
        owner = self._known(processes.owner(process.pid), process)
        if not (self._users.know((owner.uid,)) and self._groups.know((owner.gid, *owner.groups))):
            await self._askers.run(process.uid, lambda: self._learn(owner))
        found = self._describe(owner)
        if self._configuration.discover_workload_path:
            found += await self._program(process)
        # Last: a pid that is still the same process's has been so all the time.
        processes.require_same(process)
        return [Selector(self.name, f"{kind}:{_text(value)}") for kind, value in found]

    def _known(self, owner: processes.Owner, process: Process) -> processes.Owner:
        """The owner, without the groups that could be any. Raises Refused when the user could be anybody."""
        processes.require_owner(process, owner)
        _require_few(owner, process.pid)
        if owner.uid == self._foreign_uid or owner.gid == self._foreign_gid:
            raise Refused(
                f"process {process.pid} is of a user or group that the agent's user namespace does not know, and seen "
                f"as {owner.uid} and {owner.gid} as all such are: run the agent in the host's user namespace"
            )
        return replace(owner, groups=tuple(each for each in owner.groups if each != self._foreign_gid))

    async def _program(self, process: Process) -> list[tuple[str, str]]:
        """The program's selectors. A user whose programs take long to read waits for them, and nobody else does."""
        given_up = threading.Event()
        limit = self._configuration.workload_size_limit
        try:
            return await self._readers.run(process.uid, lambda: programs.describe(process.pid, limit, given_up))
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


def _require_few(owner: processes.Owner, pid: int) -> None:
    """Linux allows 65,536 groups, and in a user namespace of their own all users may have them."""
    if len(owner.groups) > _MOST_GROUPS:
        raise Refused(f"process {pid} is in {len(owner.groups)} groups; at most {_MOST_GROUPS} are looked at")


def _text(value: str) -> str:
    """Raises Refused for names that are no UTF-8, which no entry could have."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Refused(
            f"{quote(os.fsencode(value).decode(errors='replace'))} is no UTF-8: no selector has it"
        ) from error
    return value


async def load(configuration: Configuration, _context: PluginContext) -> WorkloadAttestor:
    return UnixAttestor(configuration)
