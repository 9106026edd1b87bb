"""A worker process: it loads the PKCS#11 module, and a thread for each of its sockets owns a session with the token.

    python -m keystores.pkcs11.service PARENT DESCRIPTOR [DESCRIPTOR ...]

Started by process.py. It ends when the first of its sockets is closed, when its parent ends, and when it is killed,
which is what happens to one whose module hangs. Imports are light: a worker is ready before a device answers.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

import msgspec

from keystores.errors import KeyStoreError
from keystores.pkcs11 import failures, protocol
from keystores.pkcs11.connection import Connection
from keystores.pkcs11.module import Module
from keystores.pkcs11.protocol import (
    Beat,
    Check,
    DescribeKeys,
    Destroy,
    Failure,
    FindKey,
    Generate,
    ListKeys,
    Open,
    PinDenied,
    PinGiven,
    PinTried,
    PinWanted,
    Relabel,
    Seal,
    Sign,
)
from keystores.pkcs11.session import TokenSession

BEAT = 1.0
"""Seconds of a batch after which the program hears that the device goes on."""
_PR_SET_PDEATHSIG = 1
_LAST_WAIT = 1.0
_CHUNK = 64 * 1024


class Closed(Exception):
    """The program has closed the socket, or is gone."""


class Wire:
    """One socket, seen from its thread."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._received = bytearray()

    def send(self, message: protocol.ToProgram) -> None:
        try:
            self._socket.sendall(protocol.frame(message))
        except OSError as error:
            raise Closed from error

    def receive(self) -> protocol.ToWorker:
        self._read(protocol.HEADER_SIZE)
        end = protocol.HEADER_SIZE + protocol.size(bytes(self._received[: protocol.HEADER_SIZE]))
        self._read(end)
        body = bytes(self._received[protocol.HEADER_SIZE : end])
        del self._received[:end]
        return protocol.to_worker(body)

    def _read(self, size: int) -> None:
        """At least so many bytes in hand."""
        while len(self._received) < size:
            try:
                chunk = self._socket.recv(_CHUNK)
            except OSError as error:
                raise Closed from error
            if not chunk:
                raise Closed
            self._received += chunk


class _Attempt:
    """A PIN that the program gave for one try."""

    def __init__(self, wire: Wire, pin: str) -> None:
        self.pin = pin
        self._wire = wire

    def accepted(self) -> None:
        self._wire.send(PinTried(accepted=True))

    def refused(self) -> None:
        self._wire.send(PinTried(accepted=False))


class Lane:
    """Serves one socket on one connection, a request at a time."""

    def __init__(self, wire: Wire, module: Module, opened: Open, *, rw: bool) -> None:
        self._wire = wire
        self._connection = Connection(module, opened.token, opened.profile, self._ask_pin, rw=rw)

    def _ask_pin(self) -> _Attempt:
        self._wire.send(PinWanted())
        match self._wire.receive():
            case PinGiven(pin):
                return _Attempt(self._wire, pin)
            case PinDenied(kind, text):
                raise failures.error(kind, text)
            case other:
                raise failures.OutOfStep(f"a {type(other).__name__} where a PIN was wanted")

    def serve(self) -> None:
        """Until the socket is closed."""
        try:
            while True:
                self.answer(self._wire.receive())
        except Closed:
            self._connection.close()

    def answer(self, request: protocol.ToWorker) -> None:
        self._wire.send(_answered(lambda: self._done(request)))

    def _done(self, request: protocol.ToWorker) -> object:
        connection = self._connection
        match request:
            case Open():
                return connection.start().facts()
            case Check():
                return connection.run(lambda session: session.check())
            case ListKeys(prefix):
                return connection.run(lambda session: session.keys(lambda label: label.startswith(prefix)))
            case FindKey(label):
                return connection.run(lambda session: session.keys(lambda found: found == label))
            case Generate():
                connection.run(lambda session: session.check())
                return connection.run(lambda session: session.generate(request), repeatable=False)
            case Sign():
                return self._sign(request)
            case Relabel(cka_id, label):
                return connection.run(lambda session: session.relabel(cka_id, label))
            case Destroy(cka_id):
                return connection.run(lambda session: session.destroy(cka_id))
            case _:
                return self._further(request)

    def _further(self, request: protocol.ToWorker) -> object:
        """What only operators and sealed stores ask for."""
        match request:
            case DescribeKeys(prefix, expected):
                return self._connection.run(lambda session: session.described(prefix, expected))
            case Seal():
                return self._connection.run(lambda session: session.seal(request))
            case _:
                raise failures.OutOfStep(f"a {type(request).__name__} where a request was expected")

    def _sign(self, request: Sign) -> list[bytes]:
        signatures: list[bytes] = []
        told = time.monotonic()

        def collect(session: TokenSession) -> None:
            nonlocal told
            # After a recovery, what was signed before it is not signed again.
            rest = request.payloads[len(signatures) :]
            for signature in session.sign(msgspec.structs.replace(request, payloads=rest)):
                signatures.append(signature)
                if (now := time.monotonic()) - told > BEAT:
                    told = now
                    self._wire.send(Beat())

        self._connection.run(collect)
        return signatures


def _answered(work: Callable[[], object]) -> protocol.ToProgram:
    try:
        return protocol.done(work())
    except KeyStoreError as error:
        return Failure(failures.kind(error), str(error))
    except Closed:
        raise
    except Exception as error:  # noqa: BLE001 - nothing is dropped: the program gets it
        return Failure(failures.OutOfStep.__name__, f"the PKCS#11 worker failed: {type(error).__name__}: {error}")


def serve(descriptors: list[int]) -> None:
    """The first request on the first socket opens the token; then each further socket gets its thread."""
    first = Wire(descriptors[0])
    try:
        opened = first.receive()
        lanes = _opened(first, opened, descriptors)
    except Closed:
        return
    if lanes is None:
        return
    module, lane, threads = lanes
    lane.serve()
    for thread in threads:
        thread.join(_LAST_WAIT)
    module.finalize()


def _opened(
    first: Wire, request: protocol.ToWorker, descriptors: list[int]
) -> tuple[Module, Lane, list[threading.Thread]] | None:
    if not isinstance(request, Open):
        raise Closed
    try:
        module = Module(request.module_path)
    except KeyStoreError as error:
        first.send(Failure(failures.kind(error), str(error)))
        return None
    lane = Lane(first, module, request, rw=True)
    lane.answer(request)
    others = [Lane(Wire(descriptor), module, request, rw=False) for descriptor in descriptors[1:]]
    threads = [threading.Thread(target=each.serve, name=f"session-{at}", daemon=True) for at, each in enumerate(others)]
    for thread in threads:
        thread.start()
    return module, lane, threads


def _end_with(parent: int) -> None:
    """The kernel ends this process when the one that started it ends, by kill -9 too (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def main() -> None:
    parent, *descriptors = (int(argument) for argument in sys.argv[1:])
    _end_with(parent)
    # What a terminal or a service manager sends is for the program, which may have to sign until it ends us.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    serve(descriptors)
    # A thread in a module that hangs must not keep the process.
    os._exit(0)


if __name__ == "__main__":
    main()
