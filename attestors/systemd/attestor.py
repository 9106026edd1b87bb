"""The unit of systemd that a process belongs to, as systemd itself tells over D-Bus (org.freedesktop.systemd1(5))."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from attestors import processes
from attestors.systemd.bus import BUS, CallFailed, Connection, SystemBus
from identity.selectors import Selector
from operations.errors import NotFound, Refused
from plugins.workloadattestor import WorkloadAttestor
from transport.peer import PidFd, Process

if TYPE_CHECKING:
    from plugins.catalog import PluginContext

# A connection to dbus-daemon may wait for 128 answers (max_replies_per_connection, dbus-daemon(1)).
_AT_ONCE: Final = 32

_SYSTEMD: Final = "org.freedesktop.systemd1"
_MANAGER: Final = (_SYSTEMD, "/org/freedesktop/systemd1", f"{_SYSTEMD}.Manager")
_NO_UNIT: Final = f"{_SYSTEMD}.NoUnitForPID"
_NO_METHOD: Final = frozenset(
    f"org.freedesktop.DBus.Error.{each}"
    # The bus itself does not pass a method on that its policy does not name.
    for each in ("UnknownMethod", "AccessDenied")
)
_WITH_CGROUP: Final = ("service", "scope", "slice", "socket", "mount", "swap")


class Configuration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """There is nothing to set."""


class SystemdAttestor:
    """Selectors `id`, `fragment_path` (empty where a unit has no file) and `cgroup_path`, of the unit.

    systemd is asked by a pidfd, from its version 253 on, so that it may see other pids than the agent does.
    """

    name = "systemd"

    def __init__(self) -> None:
        self._bus = SystemBus()
        self._slots = asyncio.Semaphore(_AT_ONCE)
        # Asked once over a connection: a bus logs what its policy denies.
        self._without_pidfds: Connection | None = None

    async def attest(self, process: Process) -> Sequence[Selector]:
        """Raises NotFound when the process is gone or in no unit, other SpireError classes when that is not told.

        systemd answers nobody while it reads its units anew, and a bus may hang: who waits sets the deadline.
        """
        async with self._slots, self._bus.connection() as connection:
            found = await _describe(connection, await self._unit_of(connection, process))
        # Last: a pid that is still the same process's has been so all the time.
        processes.require_running(process)
        return [Selector(self.name, f"{kind}:{value}") for kind, value in found]

    async def _unit_of(self, connection: Connection, process: Process) -> str:
        """The object path of the process's unit."""
        try:
            if process.pidfd is not None and connection is not self._without_pidfds:
                try:
                    return await _unit_of_pidfd(connection, process.pidfd)
                except CallFailed as error:
                    if error.name not in _NO_METHOD:
                        raise
                self._without_pidfds = connection
            return await _unit_of_pid(connection, process.pid)
        except CallFailed as error:
            kind = NotFound if error.name == _NO_UNIT else Refused
            raise kind(f"failed to get unit by pid {process.pid}: {error}") from error

    async def close(self) -> None:
        await self._bus.close()


async def _unit_of_pidfd(connection: Connection, pidfd: PidFd) -> str:
    reply = await connection.call(*_MANAGER, "GetUnitByPIDFD", "h", [0], descriptors=[pidfd.fileno()])
    return _text(reply, "the unit")


async def _unit_of_pid(connection: Connection, pid: int) -> str:
    """By its number, which has to mean the same to systemd: the bus, beside it, has to have our own number right."""
    try:
        seen = await connection.call(*BUS, "GetConnectionUnixProcessID", "s", [connection.name])
    except CallFailed:
        seen = []
    if seen != [os.getpid()]:
        raise Refused(
            "systemd is in another PID namespace than the agent, and cannot be asked by a pidfd: run the agent in "
            "systemd's namespace, or with systemd 253 or later"
        )
    return _text(await connection.call(*_MANAGER, "GetUnitByPID", "u", [pid]), "the unit")


async def _describe(connection: Connection, path: str) -> list[tuple[str, str]]:
    unit_id = await _property(connection, path, "Unit", "Id")
    found = [("id", unit_id), ("fragment_path", await _property(connection, path, "Unit", "FragmentPath"))]
    kind = unit_id.rpartition(".")[2]
    if kind in _WITH_CGROUP:
        found.append(("cgroup_path", await _property(connection, path, kind.capitalize(), "ControlGroup")))
    return found


async def _property(connection: Connection, path: str, interface: str, name: str) -> str:
    body = [f"{_SYSTEMD}.{interface}", name]
    try:
        reply = await connection.call(_SYSTEMD, path, "org.freedesktop.DBus.Properties", "Get", "ss", body)
    except CallFailed as error:
        raise Refused(f"error getting value for {name}: {error}") from error
    return _text([getattr(each, "value", None) for each in reply], name)


def _text(reply: list[Any], what: str) -> str:
    if not reply or not isinstance(reply[0], str):
        raise Refused(f"systemd's answer for {what} is not understood: {reply!r:.200}")
    return reply[0]


async def load(_configuration: Configuration, _context: PluginContext) -> WorkloadAttestor:
    return SystemdAttestor()
