"""The policy's worker process, as seen from the event loop: one input after the other, each with a deadline.

The engine is C++ in a process of its own: a policy that never ends, eats memory or crashes it costs that process, and the
call it was asked for is refused.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import subprocess
import threading
from dataclasses import dataclass
from typing import Final

import msgspec

from keystores import processes
from operations.errors import ConfigurationError, PermanentlyUnusable, SpireError, TemporarilyUnavailable
from server.policy.files import Sources

SERVICE: Final = "server.policy.service"
LENGTH: Final = struct.Struct(">I")
FRAME_LIMIT: Final = 64 << 20
QUEUE_LIMIT: Final = 1000
"""Calls that may wait for the policy."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds: to start the process and compile, to evaluate one input, and of a call until its turn."""

    start: float = 60.0
    answer: float = 5.0
    turn: float = 10.0


PATIENCE: Final = Patience()


class Verdict(msgspec.Struct, frozen=True):
    error: str = ""
    line: int = 0
    value: object = None


class PolicyFailed(PermanentlyUnusable):
    """The policy gave no result for an input."""


class _Process:
    def __init__(
        self, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self.alive = True

    @classmethod
    async def start(cls) -> _Process:
        ours, theirs = socket.socketpair()
        # Policies can read the environment (opa.runtime).
        environment = {"PYTHONPATH": processes.environment({})["PYTHONPATH"]}
        try:
            process = await asyncio.to_thread(
                lambda: subprocess.Popen(
                    processes.command(SERVICE),
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=environment,
                )
            )
        except OSError as error:
            ours.close()
            raise TemporarilyUnavailable(f"the policy's process does not start: {error}") from error
        finally:
            theirs.close()
        return cls(process, *await asyncio.open_connection(sock=ours))

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ask(self, body: bytes, patience: float) -> Verdict:
        """Raises TemporarilyUnavailable when no answer comes, and the process is ended."""
        try:
            async with asyncio.timeout(patience):
                self._writer.write(LENGTH.pack(len(body)) + body)
                await self._writer.drain()
                [size] = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
                if size > FRAME_LIMIT:
                    raise EOFError
                return msgspec.json.decode(await self._reader.readexactly(size), type=Verdict)
        except TimeoutError as error:
            self.end()
            raise TemporarilyUnavailable(f"the policy gave no answer within {patience:g} s") from error
        except (OSError, EOFError, msgspec.MsgspecError) as error:
            self.end()
            raise TemporarilyUnavailable("the policy's process ended: it may hold no more than 1 GiB of memory") from error
        except BaseException:
            self.end()  # its answer would be taken for the next one's
            raise

    def end(self) -> None:
        if not self.alive:
            return
        self.alive = False
        self._writer.close()
        self._process.kill()
        threading.Thread(target=self._process.wait, name="policy-end", daemon=True).start()


class Engine:
    """A policy that was compiled and found good. After `close` it answers no more."""

    def __init__(self, sources: Sources, patience: Patience = PATIENCE) -> None:
        self._sources = sources
        self._patience = patience
        self._process: _Process | None = None
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._closed = False

    @classmethod
    async def start(cls, sources: Sources, patience: Patience = PATIENCE) -> Engine:
        """Raises ConfigurationError for a policy that cannot be compiled."""
        engine = cls(sources, patience)
        await engine._running()
        return engine

    @property
    def pid(self) -> int | None:
        """The process at hand, for operators and tests."""
        return None if self._process is None or not self._process.alive else self._process.pid

    async def evaluate(self, document: bytes) -> object:
        """What `data.spire.result` is for an input, a JSON object; None where it is undefined.

        An evaluation that has begun goes on to its end when its caller has gone. Raises SpireError.
        """
        if self._waiting >= QUEUE_LIMIT:
            raise TemporarilyUnavailable(f"{QUEUE_LIMIT} calls wait for the policy already")
        if len(document) > FRAME_LIMIT:
            raise PolicyFailed("the request is too large for the policy")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._patience.turn):
                await self._turn.acquire()
        except TimeoutError as error:
            raise TemporarilyUnavailable(
                f"the policy was busy with other calls for {self._patience.turn:g} s"
            ) from error
        finally:
            self._waiting -= 1
        exchange = asyncio.create_task(self._exchange(document))
        exchange.add_done_callback(self._over)
        return await asyncio.shield(exchange)

    def _over(self, exchange: asyncio.Task[object]) -> None:
        self._turn.release()
        if not exchange.cancelled():
            exchange.exception()  # of a call whose caller has gone nobody else would ask

    async def _exchange(self, document: bytes) -> object:
        verdict = await (await self._running()).ask(document, self._patience.answer)
        if verdict.error:
            raise PolicyFailed(verdict.error)
        return verdict.value

    async def _running(self) -> _Process:
        if self._closed:
            raise TemporarilyUnavailable("the policy's process has been ended")
        if self._process is None or not self._process.alive:
            self._process = await _Process.start()
            load = msgspec.json.encode({"module": self._sources.module, "data": self._sources.data})
            try:
                verdict = await self._process.ask(load, self._patience.start)
            except SpireError as error:
                raise ConfigurationError(str(error), file=self._sources.path) from error
            if verdict.error:
                self._process.end()
                raise ConfigurationError(verdict.error, file=self._sources.path, line=verdict.line or None)
        return self._process

    async def close(self) -> None:
        self._closed = True
        if self._process is not None:
            self._process.end()
