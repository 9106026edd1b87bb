"""A system bus of a test's own, by the real dbus-daemon, and on it what answers as systemd does, or fails to."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from dbus_fast import Message, MessageType, Variant
from dbus_fast.aio import MessageBus

from tests.simulators.spire import eventually

NAME: Final = "org.freedesktop.systemd1"
OBJECT: Final = "/org/freedesktop/systemd1"
_CONFIG: Final = """<busconfig>
  <type>system</type>
  <listen>unix:path={path}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/><allow own="*"/>
    <allow send_destination="*"/><allow receive_sender="*"/>
  </policy>
</busconfig>
"""


@dataclass
class SystemBus:
    folder: Path
    daemon: subprocess.Popen[bytes] | None = None

    @property
    def path(self) -> Path:
        return self.folder / "system_bus_socket"

    @property
    def address(self) -> str:
        """For DBUS_SYSTEM_BUS_ADDRESS."""
        return f"unix:path={self.path}"

    def start(self) -> None:
        config = self.folder / "bus.conf"
        config.write_text(_CONFIG.format(path=self.path))
        self.daemon = subprocess.Popen(
            ["dbus-daemon", f"--config-file={config}", "--nofork", "--nopidfile"], stderr=subprocess.DEVNULL
        )
        eventually(self._listens, "the bus")

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.path)) == 0

    def stop(self) -> None:
        if self.daemon is not None:
            self.daemon.kill()
            self.daemon.wait(60)
            self.daemon = None
        self.path.unlink(missing_ok=True)


@dataclass
class Systemd:
    """Its units by the pids in them; `properties` of all of them, as `Interface.Name`.

    `pidfds` says whether it knows GetUnitByPIDFD, as from version 253 on. Methods that it `hangs` on are never
    answered.
    """

    units: dict[int, str] = field(default_factory=dict[int, str])
    properties: dict[str, Variant] = field(default_factory=dict[str, Variant])
    pidfds: bool = True
    refusal: str = "org.freedesktop.DBus.Error.UnknownMethod"
    hangs: frozenset[str] = frozenset()
    calls: list[str] = field(default_factory=list[str])
    bus: MessageBus | None = None

    @asynccontextmanager
    async def on(self, bus: SystemBus) -> AsyncGenerator[None, None]:
        self.bus = await MessageBus(bus_address=bus.address, negotiate_unix_fd=True).connect()
        self.bus.add_message_handler(self._handle)
        await self.bus.request_name(NAME)
        try:
            yield
        finally:
            self.bus.disconnect()

    def _handle(self, message: Message) -> Message | bool | None:
        if message.message_type is not MessageType.METHOD_CALL:
            return None
        self.calls.append(str(message.member))
        if message.member in self.hangs:
            return True
        answers: Mapping[str, Callable[[Message], Message]] = {
            "GetUnitByPID": self._unit_by_pid,
            "GetUnitByPIDFD": self._unit_by_pidfd,
            "Get": self._property,
        }
        return answers[str(message.member)](message)

    def _unit_by_pid(self, message: Message) -> Message:
        return self._unit(message, message.body[0])

    def _unit_by_pidfd(self, message: Message) -> Message:
        if not self.pidfds:
            return Message.new_error(message, self.refusal, "Unknown method GetUnitByPIDFD")
        descriptor: int = cast("Any", message).unix_fds[message.body[0]]
        try:
            lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
        finally:
            os.close(descriptor)
        return self._unit(message, int(next(line.split()[1] for line in lines if line.startswith("Pid:"))), by_fd=True)

    def _unit(self, message: Message, pid: int, *, by_fd: bool = False) -> Message:
        try:
            unit = self.units[pid] if pid > 0 else None
        except KeyError:
            unit = None
        if unit is None:
            return Message.new_error(message, f"{NAME}.NoUnitForPID", f"PID {pid} does not belong to any loaded unit.")
        path = f"{OBJECT}/unit/{unit.replace('.', '_2e').replace('-', '_2d').replace('@', '_40')}"
        if by_fd:
            return Message.new_method_return(message, "osay", [path, unit, bytes(16)])
        return Message.new_method_return(message, "o", [path])

    def _property(self, message: Message) -> Message:
        interface, name = message.body
        unit = str(message.path).rpartition("/")[2].replace("_2e", ".").replace("_2d", "-").replace("_40", "@")
        known = {
            "Unit.Id": Variant("s", unit),
            "Unit.FragmentPath": Variant("s", f"/lib/systemd/system/{unit}"),
            "Service.ControlGroup": Variant("s", f"/system.slice/{unit}"),
        } | self.properties
        value = known.get(f"{interface.removeprefix(f'{NAME}.')}.{name}")
        if value is None:
            text = f"Unknown interface {interface} or property {name}."
            return Message.new_error(message, "org.freedesktop.DBus.Error.UnknownProperty", text)
        return Message.new_method_return(message, "v", [value])


async def silent(path: Path) -> asyncio.Server:
    """What listens in place of a bus and never says a word."""

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    return await asyncio.start_unix_server(hold, path)
