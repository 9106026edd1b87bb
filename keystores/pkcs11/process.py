"""A worker process as the program sees it: started, asked, listened to, and killed when it gives no answer."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import IO, TypeVar

import msgspec

from keystores import processes
from keystores.errors import TemporarilyUnavailable
from keystores.pkcs11 import failures, protocol
from keystores.pkcs11.pin import Attempt, Pin
from keystores.pkcs11.protocol import Beat, Done, Failure, PinDenied, PinGiven, PinTried, PinWanted
from operations.errors import SpireError
from operations.logs import Logger

T = TypeVar("T")

END_PATIENCE = 3.0
"""Seconds for a worker to close its sessions before it is killed."""
_LONGEST_LINE = 4096
_LINES = 200
"""Lines of a worker's standard error that are logged; a module that writes more is told off once."""


class Lost(TemporarilyUnavailable):
    """The worker process ended, or was killed, under the call. What it did is not known."""


class Silent(Lost):
    """The call itself had no answer: it is what the worker was killed for."""


@dataclass(frozen=True, slots=True)
class Start:
    """How a worker is started: how many sockets it gets, and what its environment has besides the program's."""

    sessions: int
    environment: Mapping[str, str]


class Lane(asyncio.Protocol):
    """The program's end of one socket. One call at a time; `WorkerProcess` sees to that."""

    def __init__(self, pin: Pin) -> None:
        self.rw = False
        self._pin = pin
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._replies: deque[protocol.ToProgram] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        try:
            while len(self._received) >= protocol.HEADER_SIZE:
                end = protocol.HEADER_SIZE + protocol.size(bytes(self._received[: protocol.HEADER_SIZE]))
                if len(self._received) < end:
                    break
                self._replies.append(protocol.to_program(bytes(self._received[protocol.HEADER_SIZE : end])))
                del self._received[:end]
        except (ValueError, msgspec.MsgspecError):
            self.close()
            self.connection_lost(None)
            return
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    async def ask(self, request: protocol.Request, result: type[T], patience: float) -> T:
        """The result. Raises what the worker raised, Lost, and Silent after `patience` seconds without an answer.

        It is not to be cancelled: the next call would get this one's answer.
        """
        self._send(request)
        refusal: list[SpireError] = []
        async with AsyncExitStack() as held:
            attempt: Attempt | None = None
            while True:
                match await self._next(patience):
                    case Beat():
                        pass
                    case PinWanted():
                        attempt = await self._give_pin(held, refusal)
                    case PinTried(accepted):
                        if attempt is not None and accepted:
                            await asyncio.to_thread(attempt.accepted)
                        elif attempt is not None:
                            refusal.append(await asyncio.to_thread(attempt.refused))
                        await held.aclose()
                    case Done(raw):
                        return msgspec.msgpack.decode(raw, type=result)
                    case Failure(kind, text):
                        error = failures.error(kind, text)
                        if refusal:
                            raise refusal[-1] from error
                        raise error

    async def _give_pin(self, held: AsyncExitStack, refusal: list[SpireError]) -> Attempt | None:
        """Reads the PIN and sends it, or says in `refusal` why not. Until `held` is closed nobody else logs in."""
        trying = self._pin.attempt()
        try:
            attempt = await asyncio.to_thread(trying.__enter__)
        except SpireError as error:
            refusal.append(error)
            self._send(PinDenied(failures.kind(error), str(error)))
            return None
        held.callback(trying.__exit__, None, None, None)
        self._send(PinGiven(attempt.pin))
        return attempt

    def _send(self, message: protocol.ToWorker) -> None:
        if self._transport is None or self._lost:
            raise Lost("the PKCS#11 worker has ended")
        self._transport.write(protocol.frame(message))

    async def _next(self, patience: float) -> protocol.ToProgram:
        loop = asyncio.get_running_loop()
        late_at = loop.time() + patience
        while not self._replies:
            if self._lost:
                raise Lost("the PKCS#11 worker ended during the call: the module crashed, or was stopped")
            if loop.time() >= late_at:
                raise Silent(f"the PKCS#11 module gave no answer within {patience:g} s")
            self._waiter = loop.create_future()
            timer = loop.call_at(late_at, self._wake)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
        return self._replies.popleft()


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
