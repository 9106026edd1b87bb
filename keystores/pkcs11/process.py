"""A worker process as the program sees it: started, asked, listened to, and killed when it gives no answer."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

from keystores import processes
from keystores.errors import TemporarilyUnavailable
from keystores.pkcs11.lane import Lane
from keystores.pkcs11.pin import Pin
from operations.logs import Logger

END_PATIENCE = 3.0
"""Seconds for a worker to close its sessions before it is killed."""
_LONGEST_LINE = 4096
_LINES = 200
"""Lines of a worker's standard error that are logged; a module that writes more is told off once."""


@dataclass(frozen=True, slots=True)
class Start:
    """How a worker is started: how many sockets it gets, and what its environment has besides the program's."""

    sessions: int
    environment: Mapping[str, str]


class WorkerProcess:
    """Started by `start`, ready when `connect` returns. `lanes` are its sockets; the first may change the token."""

    def __init__(
        self, process: subprocess.Popen[bytes], pidfd: int, ends: Sequence[socket.socket], log: Logger
    ) -> None:
        self.lanes: list[Lane] = []
        self.pid = process.pid
        self._process = process
        self._pidfd = pidfd
        self._ends = list(ends)
        self._log = log
        self._ended = asyncio.Event()
        self._watching = asyncio.create_task(self._watch())
        self._reading = asyncio.create_task(self._read_errors())

    @classmethod
    def start(cls, start: Start, log: Logger) -> WorkerProcess:
        """Raises TemporarilyUnavailable when the system has no process or descriptor for it.

        On the loop's thread: to the kernel, the end of the thread that starts it is the end of its parent.
        """
        pairs: list[tuple[socket.socket, socket.socket]] = []
        try:
            pairs.extend(socket.socketpair() for _ in range(start.sessions))
            theirs = [their.fileno() for _, their in pairs]
            command = processes.command("keystores.pkcs11.service", str(os.getpid()), *map(str, theirs))
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=processes.environment(start.environment),
                pass_fds=theirs,
            )
            pidfd = os.pidfd_open(process.pid)
        except OSError as error:
            for ours, _ in pairs:
                ours.close()
            raise TemporarilyUnavailable(f"no PKCS#11 worker can be started: {error.strerror}") from error
        finally:
            for _, their in pairs:
                their.close()
        return cls(process, pidfd, [ours for ours, _ in pairs], log)

    async def connect(self, pin: Pin) -> None:
        loop = asyncio.get_running_loop()
        for end in self._ends:
            end.setblocking(False)
            _, lane = await loop.create_connection(lambda: Lane(pin), sock=end)
            self.lanes.append(lane)
        self._ends.clear()
        self.lanes[0].rw = True

    def keep(self, sessions: int) -> None:
        """Give up the sockets that are more than the token has sessions for."""
        for lane in self.lanes[sessions:]:
            lane.close()
        del self.lanes[sessions:]

    def kill(self) -> None:
        if not self._ended.is_set():
            with suppress(ProcessLookupError):
                self._process.kill()

    async def end(self) -> None:
        """Let it close its sessions; kill it when it does not."""
        for end in self._ends:
            end.close()
        for lane in self.lanes:
            lane.close()
        try:
            async with asyncio.timeout(END_PATIENCE):
                await self._ended.wait()
        except TimeoutError:
            self.kill()
            with suppress(TimeoutError):
                async with asyncio.timeout(END_PATIENCE):  # a process in the kernel's hands may outlast its kill
                    await self._ended.wait()
        self._watching.cancel()
        self._reading.cancel()
        await asyncio.gather(self._watching, self._reading, return_exceptions=True)

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        exited = asyncio.Event()
        loop.add_reader(self._pidfd, exited.set)
        try:
            await exited.wait()
            self._process.wait()
            self._ended.set()
        finally:
            loop.remove_reader(self._pidfd)
            os.close(self._pidfd)

    async def _read_errors(self) -> None:
        """What the module writes is for the operator, and it may not fill our log's disk."""
        pipe: IO[bytes] | None = self._process.stdout
        if pipe is None:
            raise RuntimeError("the worker was started without a pipe")
        stream = asyncio.StreamReader(limit=_LONGEST_LINE)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), pipe
        )
        lines = 0
        try:
            while chunk := await stream.read(_LONGEST_LINE):
                for line in chunk.decode("utf-8", "replace").splitlines():
                    lines += 1
                    if lines <= _LINES:
                        self._log.warning("The PKCS#11 module says", text=line, pid=self.pid)
                    elif lines == _LINES + 1:
                        self._log.warning("The PKCS#11 module writes too much; the rest is not logged", pid=self.pid)
        finally:
            transport.close()
