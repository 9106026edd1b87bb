"""A transport to a swtpm that fails as it is told: between its TCTI and the TPM, on a Unix socket of its own.

What a TPM, its bus or its driver has been seen to do: codes of any kind, silence, a line cut before or within a
response, bytes that are not what was sent, a reset in the middle of work.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from tests.simulators.swtpm import Swtpm

_HEADER = struct.Struct(">HII")
CREATE_PRIMARY, CREATE, LOAD, SIGN, UNSEAL, GET_RANDOM = 0x131, 0x153, 0x157, 0x15D, 0x15E, 0x17B
START_AUTH_SESSION, FLUSH_CONTEXT = 0x176, 0x165


class Trouble(Enum):
    """What may happen to a command besides an error code, which is an int."""

    HANG = "no answer"
    REFUSE = "connection refused"
    CUT = "cut before the response"
    TRUNCATE = "cut within the response"
    GARBAGE = "random bytes"
    FLIP = "a bit flipped in the response"
    RESET = "TPM reset"


Fault = int | Trouble


@dataclass
class FaultyTpm:
    """`faults` by command code, and under None for all others. `log` has commands and their true responses."""

    tpm: Swtpm
    path: Path
    faults: dict[int | None, Fault] = field(default_factory=dict[int | None, Fault])
    once: bool = False
    log: list[tuple[bytes, bytes]] = field(default_factory=list[tuple[bytes, bytes]])
    struck: int = 0
    _mended: threading.Event = field(default_factory=threading.Event)
    _ended: bool = False

    @property
    def tcti(self) -> str:
        return f"swtpm:path={self.path}"

    def fail(self, fault: Fault, *codes: int, once: bool = False) -> None:
        """From now on, until `mend` or only the first time, to these commands, or to all."""
        self._mended.clear()
        self.struck = 0
        self.once = once
        self.faults = dict.fromkeys(codes or (None,), fault)

    def mend(self) -> None:
        self.faults = {}
        self._mended.set()

    def _fault(self, code: int) -> Fault | None:
        fault = self.faults.get(code, self.faults.get(None))
        if fault is not None:
            self.struck += 1
            if self.once:
                self.faults = {}
        return fault

    @contextmanager
    def listening(self) -> Generator[FaultyTpm]:
        listeners = [_listener(self.path), _listener(Path(f"{self.path}.ctrl"))]
        handlers: list[Callable[[socket.socket], None]] = [self._serve, self._serve_control]
        for listener, handler in zip(listeners, handlers, strict=True):
            threading.Thread(target=self._accept, args=(listener, handler), daemon=True).start()
        try:
            yield self
        finally:
            self._ended = True
            self._mended.set()
            for listener in listeners:
                listener.shutdown(socket.SHUT_RDWR)
                listener.close()

    def _accept(self, listener: socket.socket, handler: Callable[[socket.socket], None]) -> None:
        while not self._ended:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._guarded, args=(connection, handler), daemon=True).start()

    def _guarded(self, connection: socket.socket, handler: Callable[[socket.socket], None]) -> None:
        with connection, suppress(OSError, EOFError):
            handler(connection)

    def _serve_control(self, connection: socket.socket) -> None:
        """What the TCTI says to swtpm's control channel, and its answer."""
        if self.faults.get(None) is Trouble.REFUSE:
            return
        while request := connection.recv(4096):
            with socket.socket(socket.AF_UNIX) as control:
                control.connect(f"{self.tpm.path}.ctrl")
                control.sendall(request)
                connection.sendall(control.recv(4096))

    def _serve(self, connection: socket.socket) -> None:
        while command := message(connection):
            [_, _, code] = _HEADER.unpack_from(command)
            fault = self._fault(code)
            if isinstance(fault, int):
                connection.sendall(_HEADER.pack(0x8001, 10, fault))
                continue
            if fault in {Trouble.CUT, Trouble.REFUSE}:
                return
            if fault is Trouble.HANG:
                self._mended.wait()
                return
            if fault is Trouble.RESET:
                self.tpm.reset()
            response = self._forward(command)
            self.log.append((command, response))
            connection.sendall(_spoiled(response, fault))
            if fault is Trouble.TRUNCATE:
                return

    def _forward(self, command: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX) as upstream:
            upstream.connect(str(self.tpm.path))
            upstream.sendall(command)
            return message(upstream)


def _spoiled(response: bytes, fault: Fault | None) -> bytes:
    if fault is Trouble.TRUNCATE:
        return response[: max(len(response) // 2, 5)]
    if fault is Trouble.GARBAGE:
        return bytes((17 * number + 99) % 256 for number in range(len(response)))
    if fault is Trouble.FLIP:
        middle = len(response) // 2
        return response[:middle] + bytes([response[middle] ^ 0x01]) + response[middle + 1 :]
    return response


def message(connection: socket.socket) -> bytes:
    """A command or response, by the size in its header; empty at the end."""
    data = b""
    size = _HEADER.size
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            return b""
        data += part
        if len(data) == _HEADER.size:
            size = _HEADER.unpack(data)[1]
    return data


def _listener(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(16)
    return listener


@contextmanager
def before(tpm: Swtpm) -> Generator[FaultyTpm]:
    """A faultless transport, until it is told otherwise."""
    with FaultyTpm(tpm, tpm.folder / "faulty.sock").listening() as faulty:
        yield faulty
