"""The program's end of one socket to a worker: one call at a time, answered, or given up after a silence."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import Generic, TypeVar

import msgspec

from keystores.errors import TemporarilyUnavailable
from keystores.pkcs11 import failures, protocol
from keystores.pkcs11.pin import Attempt, Pin
from keystores.pkcs11.protocol import Beat, Done, Failure, PinDenied, PinGiven, PinTried, PinWanted
from operations.errors import SpireError

T = TypeVar("T")

_SHORTEST_LOOK = 0.05


class Lost(TemporarilyUnavailable):
    """The worker process ended, or was killed, under the call. What it did is not known."""


class Silent(Lost):
    """The call itself had no answer: it is what the worker was killed for."""


Over = Callable[["Lane", Exception | None], None]
"""Told when a call is over and the socket may be used again, or never again after Lost. Before its caller is."""


class _Call(Generic[T]):
    def __init__(self, result: type[T], patience: float, over: Over) -> None:
        self.future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.patience = patience
        self.over = over
        self.held = ExitStack()
        self.attempt: Attempt | None = None
        self.refusal: SpireError | None = None
        self._result = result

    def done(self, raw: msgspec.Raw) -> None:
        if not self.future.done():
            self.future.set_result(msgspec.msgpack.decode(raw, type=self._result))

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # seen: a caller may have gone


class Lane(asyncio.Protocol):
    """`rw` says whether its session makes and destroys keys."""

    def __init__(self, pin: Pin) -> None:
        self.rw = False
        self._pin = pin
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._call: _Call[object] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._late_at = 0.0
        self._aside: asyncio.Task[None] | None = None
        self._waiting: deque[protocol.ToProgram] = deque()
        self._lost = False

    def ask(self, request: protocol.Request, result: type[T], patience: float, over: Over) -> asyncio.Future[T]:
        """The result to come, or what the worker raised, or Lost, or Silent after `patience` seconds without a word.

        Whoever cancels the future gives up the answer, not the call: `over` is told when that is at its end.
        """
        call = _Call(result, patience, over)
        self._call = call  # type: ignore[assignment]  # its result is its caller's business
        if self._transport is None or self._lost:
            self._end(Lost("the PKCS#11 worker has ended"))
            return call.future
        self._send(request)
        self._heard()
        return call.future

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

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
                self._waiting.append(protocol.to_program(bytes(self._received[protocol.HEADER_SIZE : end])))
                del self._received[:end]
        except (ValueError, msgspec.MsgspecError):
            self.close()
            return
        self._heard()
        self._go_on()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        if self._aside is None:
            self._go_on()

    def _go_on(self) -> None:
        """Take the messages in order; what a PIN needs is done aside, and holds up those behind it."""
        while self._waiting and self._aside is None:
            self._take(self._waiting.popleft())
        if self._lost and self._aside is None:
            self._end(Lost("the PKCS#11 worker ended during the call: the module crashed, or was stopped"))

    def _take(self, message: protocol.ToProgram) -> None:
        call = self._call
        if call is None:
            return
        match message:
            case Done(raw):
                self._end(None, raw)
            case Failure(kind, text):
                error: SpireError = failures.error(kind, text)
                if call.refusal is not None:
                    call.refusal.__cause__ = error
                    error = call.refusal
                self._end(error)
            case PinWanted():
                self._go_aside(self._give_pin(call))
            case PinTried(accepted):
                self._go_aside(self._tried(call, accepted=accepted))
            case Beat():
                pass

    def _end(self, error: Exception | None, raw: msgspec.Raw | None = None) -> None:
        call, self._call = self._call, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if call is None:
            return
        call.held.close()
        call.over(self, error)
        if raw is not None:
            call.done(raw)
        elif error is not None:
            call.fail(error)

    def _heard(self) -> None:
        call = self._call
        if call is not None:
            loop = asyncio.get_running_loop()
            self._late_at = loop.time() + call.patience
            if self._timer is None:
                self._timer = loop.call_at(self._late_at, self._look)

    def _look(self) -> None:
        self._timer = None
        call = self._call
        if call is None:
            return
        loop = asyncio.get_running_loop()
        if self._aside is not None or loop.time() < self._late_at:
            self._timer = loop.call_at(max(self._late_at, loop.time() + _SHORTEST_LOOK), self._look)
        else:
            self._lost = True
            self._end(Silent(f"the PKCS#11 module gave no answer within {call.patience:g} s"))

    def _go_aside(self, work: Coroutine[None, None, None]) -> None:
        self._aside = task = asyncio.ensure_future(work)
        task.add_done_callback(self._back)

    def _back(self, task: asyncio.Task[None]) -> None:
        self._aside = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self._lost = True  # nobody knows what the worker waits for
            self._end(Lost(f"the PIN could not be given: {error}"))
        self._heard()
        self._go_on()

    async def _give_pin(self, call: _Call[object]) -> None:
        """Reads the PIN and sends it. Until the call is over, or the PIN was tried, nobody else logs in."""
        call.held.close()  # a login that failed for another reason than the PIN is over
        trying = self._pin.attempt()
        try:
            call.attempt = await asyncio.to_thread(trying.__enter__)
        except SpireError as error:
            call.refusal = error
            self._send(PinDenied(failures.kind(error), str(error)))
            return
        call.held.callback(trying.__exit__, None, None, None)
        self._send(PinGiven(call.attempt.pin))

    async def _tried(self, call: _Call[object], *, accepted: bool) -> None:
        if call.attempt is not None and accepted:
            await asyncio.to_thread(call.attempt.accepted)
        elif call.attempt is not None:
            call.refusal = await asyncio.to_thread(call.attempt.refused)
        call.held.close()

    def _send(self, message: protocol.ToWorker) -> None:
        if self._transport is not None:
            self._transport.write(protocol.frame(message))
