"""A plugin's process: started, listened to, and ended with whatever it started itself."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO, Final

from operations.errors import InvalidArgument, PermanentlyUnusable, SpireError
from operations.logs import Logger
from operations.quoting import quote
from plugins.external import handshake, output
from plugins.external.executable import Executable, Verified
from plugins.external.handshake import Address

START_TIMEOUT: Final = 60.0
"""Seconds that a plugin may take to say where it listens, as in go-plugin."""

GRACE: Final = 2.0
"""Seconds that a plugin has to end by itself once it was told to."""

_READ: Final = 64 * 1024
_DRAIN: Final = 1.0  # for the pipes of a process that has ended; a child of its own may hold them open
_LAST_WORDS: Final = 512
_LAUNCHER: Final = ("/usr/bin/setpriv", "--pdeathsig", "KILL", "--")
"""util-linux's setpriv(1): the kernel ends the plugin when this process ends, by kill -9 too (PR_SET_PDEATHSIG).

Our own code between fork and exec would need the same, in a process with threads, where Python warns of it.
"""


class PluginProcess:
    """Made by `start`. `address` is where it listens, `ended` is set when the process has."""

    def __init__(self, process: subprocess.Popen[bytes], pidfd: int, path: str, name: str, log: Logger) -> None:
        self.pid: Final = process.pid
        self.ended: Final = asyncio.Event()
        self.address = Address("unix", "")
        self._process = process
        self._pidfd = pidfd
        self._path = path
        self._log = log
        self._output_log = log.bind(subsystem_name=f"{name}.{Path(path).name}")
        self._last_words = b""
        self._line: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._reading = (asyncio.create_task(self._read_output()), asyncio.create_task(self._read_errors()))
        self._watching = asyncio.create_task(self._watch())

    @classmethod
    async def start(
        cls, executable: Executable, arguments: Sequence[str], type_: str, name: str, log: Logger
    ) -> PluginProcess:
        """`type_` and `name` are the plugin's. Raises SpireError classes, and then no process is left."""
        async with executable.verified() as verified:
            log.debug("starting plugin", path=executable.path, args=[executable.path, *arguments])
            try:
                process, pidfd = _spawn(verified, arguments, handshake.environment(type_))
            except (OSError, ValueError) as error:  # ValueError: a NUL in an argument
                raise PermanentlyUnusable(f"failed to launch plugin: {executable.path}: {error}") from error
            started = cls(process, pidfd, executable.path, name, log)
            try:
                log.debug("plugin started", path=executable.path, pid=process.pid)
                started.address = await started._where()
            except BaseException:
                await started.kill()
                raise
        return started

    async def _where(self) -> Address:
        self._log.debug("waiting for RPC address", plugin=self._path)
        try:
            async with asyncio.timeout(START_TIMEOUT):
                line = await self._line
        except TimeoutError:
            raise PermanentlyUnusable("failed to launch plugin: timeout while waiting for plugin to start") from None
        try:
            address = handshake.parse(line)
        except InvalidArgument as error:
            raise PermanentlyUnusable(f"failed to launch plugin: {error}") from error
        self._log.debug("using plugin", version=handshake.PROTOCOL)
        return address

    async def end(self) -> None:
        """Wait for a process that was asked to end, and end it when it does not. Idempotent."""
        try:
            async with asyncio.timeout(GRACE):
                await self.ended.wait()
            self._log.debug("plugin exited")
        except TimeoutError:
            self._log.warning("plugin failed to exit gracefully")
        await self.kill()

    async def kill(self) -> None:
        if not self.ended.is_set():
            self._signal()
        await self.ended.wait()

    def _signal(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    async def _watch(self) -> None:
        await _exit_of(self._pidfd)
        self._signal()  # children that the plugin left behind: the group's number is theirs as long as there are any
        status = self._process.wait()
        await asyncio.wait(self._reading, timeout=_DRAIN)
        for task in self._reading:
            task.cancel()
        await asyncio.gather(*self._reading, return_exceptions=True)
        how = _how(status)
        if status:
            self._log.error("plugin process exited", plugin=self._path, id=str(self.pid), error=how)
        else:
            self._log.info("plugin process exited", plugin=self._path, id=str(self.pid))
        if not self._line.done():
            self._line.set_exception(self._failure(how))
            self._line.exception()  # seen, should nobody ask
        self.ended.set()

    def _failure(self, how: str) -> SpireError:
        said = self._last_words[:_LAST_WORDS].decode("utf-8", "replace")
        text = f"failed to launch plugin: plugin exited before we could connect: {how or 'exit status 0'}"
        return PermanentlyUnusable(f"{text}; it said {quote(said)}" if said else text)

    async def _read_output(self) -> None:
        """The handshake's line; what follows is read and dropped, so that the plugin does not block on it."""
        async with _reader(self._process.stdout) as stream:
            try:
                line = await stream.readline()
            except ValueError:
                line = b"a line of more than %d bytes" % handshake.LONGEST_LINE
            if line and not self._line.done():
                self._line.set_result(line.decode("utf-8", "replace"))
            while await stream.read(_READ):
                pass

    async def _read_errors(self) -> None:
        async with _reader(self._process.stderr) as stream:
            async for line in output.follow(_chunks(stream), self._output_log):
                self._last_words = line


def _spawn(
    verified: Verified, arguments: Sequence[str], environment: Mapping[str, str]
) -> tuple[subprocess.Popen[bytes], int]:
    """The process and its pidfd, once the launcher runs. Raises OSError and ValueError.

    On the main thread: to the kernel, the end of the thread that forks is ours.
    """
    process = subprocess.Popen(
        [*_LAUNCHER, verified.path, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
        pass_fds=verified.descriptors,
        process_group=0,  # what the terminal sends is for us; what the plugin starts ends with it
    )
    try:
        return process, os.pidfd_open(process.pid)
    except OSError:
        process.kill()
        process.communicate()
        raise


async def _exit_of(pidfd: int) -> None:
    """Returns when the process has ended, whoever holds its pipes then; closes the descriptor."""
    loop = asyncio.get_running_loop()
    exited: asyncio.Future[None] = loop.create_future()

    def readable() -> None:
        loop.remove_reader(pidfd)
        if not exited.done():
            exited.set_result(None)

    loop.add_reader(pidfd, readable)
    try:
        await exited
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


@asynccontextmanager
async def _reader(pipe: IO[bytes] | None) -> AsyncGenerator[asyncio.StreamReader, None]:
    if pipe is None:
        raise RuntimeError("the process was started without pipes")
    stream = asyncio.StreamReader(limit=handshake.LONGEST_LINE)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stream), pipe
    )
    try:
        yield stream
    finally:
        transport.close()


async def _chunks(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while chunk := await stream.read(_READ):
        yield chunk


def _how(status: int) -> str:
    """As Go tells it; nothing for success."""
    if status < 0:
        return f"signal: {signal.strsignal(-status) or -status}".lower()
    return f"exit status {status}" if status else ""
