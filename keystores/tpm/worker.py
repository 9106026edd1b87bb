"""The TPM's worker process, as seen from the event loop: requests in turn, deadlines, and a new process after a hang.

A TPM does one thing at a time, so there is one process. Two requests are under way, so that the TPM need not wait for
the loop between them.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec

from keystores import errors, processes
from keystores.tpm import messages
from keystores.tpm.messages import Beat, Failed, Place, Reply, Request

R = TypeVar("R", bound=msgspec.Struct)

QUEUE_LIMIT: Final = 1000
"""Calls that may wait for one TPM."""
UNDER_WAY: Final = 2
SHORTEST_LOOK, LONGEST_LOOK = 0.05, 1.0
LONGEST_HOLD_OFF: Final = 8.0
SERVICE: Final = "keystores.tpm.service"


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds.

    `answer` without a sign of life from the TPM, after which its process is killed; `creation` instead for new keys,
    since hardware may take half a minute for an RSA key. `busy` of waiting for a TPM that says it is busy, within
    that. `hold_off` in which a TPM that was away is not asked again, `hang_hold_off` one that hung. `closing` for the
    process to leave the TPM empty.
    """

    answer: float = 10.0
    creation: float = 60.0
    busy: float = 5.0
    hold_off: float = 1.0
    hang_hold_off: float = 5.0
    closing: float = 5.0


PATIENCE: Final = Patience()


class WrongAuthorization(errors.Refused):
    """Said by the TPM of an authorization value, which must not be tried again."""


class TpmResponse(Exception):
    """The TPM's or its library's own code, as the cause of an error. `code` is a TSS2_RC."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code:#x}: {reason}")
        self.code = code


KINDS: Final[dict[str, type[errors.KeyStoreError]]] = {
    kind.__name__: kind
    for kind in (
        errors.NotFound,
        errors.Unsupported,
        errors.InvalidArgument,
        errors.TemporarilyUnavailable,
        errors.PermanentlyUnusable,
        errors.Refused,
    )
}


class _Ended(errors.TemporarilyUnavailable):
    """The process ended with a request under way, and not because it was killed for hanging."""


class _Process:
    """One worker process and the requests it has, answered in their order."""

    def __init__(
        self, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._waiting: deque[tuple[asyncio.Future[Reply], float]] = deque()
        self._watched = False
        self._answered_at = 0.0
        self._why: errors.TemporarilyUnavailable = _Ended("the TPM's worker process ended")
        self._reading = asyncio.create_task(self._read())
        self._stopping = False
        self.alive = True

    @classmethod
    async def start(cls, place: Place) -> _Process:
        ours, theirs = socket.socketpair()
        # The library's log says what the errors say, and would be in the service's.
        environment = processes.environment({"TSS2_LOG": os.environ.get("TSS2_LOG", "all+NONE")})
        try:
            process = await asyncio.to_thread(
                lambda: subprocess.Popen(
                    processes.command(SERVICE), stdin=theirs.fileno(), stdout=subprocess.DEVNULL, env=environment
                )
            )
        except OSError as error:
            ours.close()
            raise errors.TemporarilyUnavailable(f"the TPM's worker process does not start: {error}") from error
        finally:
            theirs.close()
        started = cls(process, *await asyncio.open_connection(sock=ours))
        started.send(place)
        return started

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: Request) -> None:
        """A frame goes out whole, whatever becomes of the caller; no more are under way than fit."""
        self._writer.write(messages.frame(message))

    async def ask(self, request: Request, patience: float) -> Reply:
        if not self.alive:
            raise self._why
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        if not self._waiting:
            self._answered_at = time.monotonic()
        self._waiting.append((future, patience))
        if not self._watched:
            self._watch()
        self.send(request)
        return await future

    def _watch(self) -> None:
        """Look again when the patience may be at its end; at its end, kill the process: nothing else ends a hang."""
        self._watched = bool(self._waiting)
        if not self._watched:
            return
        _, patience = self._waiting[0]
        left = patience - (time.monotonic() - self._answered_at)
        if left <= 0:
            self._end(errors.TemporarilyUnavailable(f"the TPM gave no answer within {patience:g} s"))
            return
        asyncio.get_running_loop().call_later(min(max(left, SHORTEST_LOOK), LONGEST_LOOK), self._watch)

    async def _read(self) -> None:
        try:
            while True:
                [size] = messages.LENGTH.unpack(await self._reader.readexactly(messages.LENGTH.size))
                if size > messages.FRAME_LIMIT:
                    break
                self._take(messages.reply(await self._reader.readexactly(size)))
        except (OSError, EOFError, msgspec.MsgspecError):
            pass
        if not self._stopping:
            self._end(self._why)

    def _take(self, reply: Reply) -> None:
        self._answered_at = time.monotonic()
        if not isinstance(reply, Beat) and self._waiting:
            future, _ = self._waiting.popleft()
            if not future.done():
                future.set_result(reply)

    def end(self) -> None:
        """Kill the process, which has nothing in the TPM any more."""
        self._end(_Ended("the TPM's worker process ended"))

    def _end(self, why: errors.TemporarilyUnavailable) -> None:
        """Kill the process and fail what it had."""
        if not self.alive:
            return
        self.alive = False
        self._why = why
        self._process.kill()
        # One that hangs in the kernel ends when the device lets it; nobody waits for that.
        threading.Thread(target=self._process.wait, name="tpm-worker-end", daemon=True).start()
        self._close()

    def _close(self) -> None:
        self._reading.cancel()
        self._writer.close()
        while self._waiting:
            future, _ = self._waiting.popleft()
            if not future.done():
                future.set_exception(self._why)

    async def stop(self, patience: float) -> None:
        """Let the process finish, leave the TPM empty and end; kill it when it does not."""
        if not self.alive:
            return
        self._why = errors.TemporarilyUnavailable("the key manager is closed")
        self._stopping = True
        self._writer.write_eof()
        try:
            await asyncio.to_thread(self._process.wait, patience)
        except subprocess.TimeoutExpired:
            self._end(self._why)
            return
        await asyncio.wait([self._reading])
        self._close()


class Worker:
    """The TPM, as seen from the event loop."""

    def __init__(self, place: Place, patience: Patience = PATIENCE) -> None:
        self.place = msgspec.structs.replace(place, busy=patience.busy)
        self._patience = patience
        self._process: _Process | None = None
        self._starting = asyncio.Lock()
        self._turns = asyncio.Semaphore(UNDER_WAY)
        self._waiting = 0
        self._closed = False
        self._ask_again_at = 0.0
        self._away: errors.KeyStoreError | None = None
        self._failures = 0

    def expect(self, source: str, name: bytes) -> None:
        """From now on the parent is this one: the process at hand knows by itself, one after it is told."""
        self.place = msgspec.structs.replace(self.place, source=source, name=name)

    async def call(self, request: Request, expected: type[R], *, creation: bool = False) -> R:
        """The worker's answer. Raises what it failed with, and TemporarilyUnavailable after the patience.

        A caller that gives up before its turn takes the request with it; one that has begun goes on to its end.
        """
        self.check_open()
        if self._waiting >= QUEUE_LIMIT:
            raise errors.TemporarilyUnavailable(f"{QUEUE_LIMIT} calls wait for the TPM already")
        self._waiting += 1
        try:
            async with self._turns:
                reply = await self._ask(request, self._patience.creation if creation else self._patience.answer)
        finally:
            self._waiting -= 1
        if isinstance(reply, Failed):
            raise self._error(reply)
        self._away, self._failures = None, 0
        if not isinstance(reply, expected):
            raise errors.PermanentlyUnusable(f"the TPM's worker answered with {type(reply).__name__}")
        return reply

    async def _ask(self, request: Request, patience: float) -> Reply:
        self.check_open()
        if self._away is not None and time.monotonic() < self._ask_again_at:
            raise type(self._away)(str(self._away)) from self._away.__cause__
        try:
            try:
                return await (await self._started()).ask(request, patience)
            except _Ended:
                # A crash costs a process, not the call. What is asked may be asked twice: nothing stays in the TPM.
                return await (await self._started()).ask(request, patience)
        except errors.TemporarilyUnavailable as error:
            if not self._closed:
                self._hold_off(error, self._patience.hang_hold_off)
            raise

    async def _started(self) -> _Process:
        async with self._starting:
            self.check_open()
            if self._process is None or not self._process.alive:
                self._process = await _Process.start(self.place)
            return self._process

    def _error(self, failed: Failed) -> errors.KeyStoreError:
        kind = WrongAuthorization if failed.authorization else KINDS.get(failed.kind, errors.PermanentlyUnusable)
        error = kind(failed.message)
        if failed.code:
            error.__cause__ = TpmResponse(failed.code, failed.reason)
        if failed.away:
            self._hold_off(error, self._patience.hold_off)
        return error

    def _hold_off(self, error: errors.KeyStoreError, seconds: float) -> None:
        """The circuit breaker: whoever asks meanwhile is told the same at once, each time for twice as long.

        The second time the process goes, too: a TCTI may keep what is broken in it, as GLib keeps a bus that ended.
        """
        self._away = error
        self._ask_again_at = time.monotonic() + min(seconds * 2**self._failures, LONGEST_HOLD_OFF)
        self._failures += 1
        if self._failures > 1 and self._process is not None:
            self._process.end()

    def check_open(self) -> None:
        """Raises TemporarilyUnavailable after `close`."""
        if self._closed:
            raise errors.TemporarilyUnavailable("the key manager is closed")

    @property
    def pid(self) -> int | None:
        """The process at hand, for operators and tests."""
        return None if self._process is None or not self._process.alive else self._process.pid

    async def close(self) -> None:
        """End the process, which leaves nothing in the TPM unless it hangs."""
        if self._closed:
            return
        self._closed = True
        async with self._starting:
            if self._process is not None:
                await self._process.stop(self._patience.closing)
