"""Callers whose pid is given to another process, for real: run as root, in a PID namespace of its own.

`unshare --pid --fork --mount-proc python -m tests.simulators.reused_pid MOMENT ATTESTOR [without-pidfd]` prints what
becomes of a call whose caller gives way to another process of the same user at that moment:

connected   the caller has connected, and is not accepted yet
accepted    it is accepted, and nothing is asked yet
asked       the attestor is asked, and has not begun
answered    the attestor has its answer, and the call has not
never       it stays
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from agent.workload_attestation import WorkloadAttestation
from attestors.systemd.attestor import SystemdAttestor
from attestors.unix import Configuration, UnixAttestor
from identity.selectors import Selector
from operations.errors import SpireError
from plugins.workloadattestor import WorkloadAttestor
from tests.simulators.system_bus import SystemBus, Systemd
from transport import unix
from transport.peer import Peer, Process

CONNECT = "import socket, sys, time; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); time.sleep(3600)"


@dataclass
class Caller:
    """A process that connects, and what takes its pid."""

    path: str
    running: subprocess.Popen[bytes] | None = None
    successor: subprocess.Popen[bytes] | None = None

    def connect(self) -> None:
        self.running = subprocess.Popen([sys.executable, "-c", CONNECT, self.path])

    def give_way(self) -> None:
        assert self.running is not None
        pid = self.running.pid
        time.sleep(0.05)  # so that start times differ, where they are all there is
        self.running.kill()
        self.running.wait(60)
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        self.successor = subprocess.Popen(["sleep", "3600"])
        assert self.successor.pid == pid, "another process came in between"

    def end(self) -> None:
        for each in (self.running, self.successor):
            if each is not None and each.poll() is None:
                each.send_signal(signal.SIGKILL)
                each.wait(60)


class Docker:
    """As slow as one that asks another program, which knows pids only."""

    name = "docker"

    async def attest(self, process: Process) -> Sequence[Selector]:
        await asyncio.sleep(0.2)
        program = await asyncio.to_thread(Path(f"/proc/{process.pid}/exe").readlink)
        return [Selector("docker", f"container-of:{program}")]


@dataclass
class Interrupted:
    """An attestor during whose work the caller gives way."""

    attestor: WorkloadAttestor
    caller: Caller
    moment: str

    @property
    def name(self) -> str:
        return self.attestor.name

    async def attest(self, process: Process) -> Sequence[Selector]:
        if self.moment == "asked":
            self.caller.give_way()
        found = await self.attestor.attest(process)
        if self.moment == "answered":
            self.caller.give_way()
        return found


@asynccontextmanager
async def attesting(name: str, folder: Path) -> AsyncGenerator[WorkloadAttestor, None]:
    """`systemd` is asked by pidfds, and `old-systemd` by pids. Either finds every process in a unit."""
    if not name.endswith("systemd"):
        yield Docker() if name == "docker" else UnixAttestor(Configuration(discover_workload_path=True))
        return
    bus = SystemBus(folder)
    bus.start()
    os.environ["DBUS_SYSTEM_BUS_ADDRESS"] = bus.address
    attestor = SystemdAttestor()
    try:
        async with Systemd(defaultdict(lambda: "any.service"), pidfds=name == "systemd").on(bus):
            yield attestor
    finally:
        await attestor.close()
        bus.stop()


async def play(moment: str, attestor: WorkloadAttestor, path: str, *, pidfd: bool) -> str:
    caller = Caller(path)
    with unix.bind(path, 0o700) as listener:
        try:
            caller.connect()
            await asyncio.to_thread(wait_readable, listener)
            if moment == "connected":
                caller.give_way()
            accepted, _ = listener.accept()
            with accepted:
                process = unix.caller(accepted)
            if not pidfd:
                process = replace(process, pidfd=None)
            if moment == "accepted":
                caller.give_way()
            attestation = WorkloadAttestation([Interrupted(attestor, caller, moment)])
            found = await attestation.attest(Peer("test", process=process))
            return f"given {' '.join(sorted(map(str, found)))}"
        except (SpireError, ConnectionError) as error:
            return f"refused: {error}"
        finally:
            caller.end()


def wait_readable(listener: socket.socket) -> None:
    assert select.select([listener], [], [], 60)[0], "nobody connected"


async def main(moment: str, attestor: str, *words: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with attesting(attestor, Path(folder)) as asked:
            print(await play(moment, asked, f"{folder}/api.sock", pidfd="without-pidfd" not in words), flush=True)


if __name__ == "__main__":
    assert os.getpid() < 10, "this needs a PID namespace of its own"
    asyncio.run(main(*sys.argv[1:]))
