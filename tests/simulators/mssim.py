"""The protocol of Microsoft's TPM simulator before a swtpm, for the TCTI "mssim" (TCG TPM simulator interface).

Two TCP ports on loopback, one after the other: commands, and the platform's signals, which are only acknowledged.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress

from tests.simulators.faulty_tpm import message
from tests.simulators.swtpm import Swtpm

_SEND_COMMAND, _SESSION_END = 8, 20


@contextmanager
def before(tpm: Swtpm) -> Generator[str]:
    """Yields the TCTI."""
    commands, platform = _pair()
    handlers: list[tuple[socket.socket, Callable[[socket.socket], None]]] = [
        (commands, lambda connection: _serve(connection, tpm)),
        (platform, _acknowledge),
    ]
    for listener, handler in handlers:
        threading.Thread(target=_accept, args=(listener, handler), daemon=True).start()
    try:
        yield f"mssim:host=127.0.0.1,port={commands.getsockname()[1]}"
    finally:
        for listener in (commands, platform):
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()


def _pair() -> tuple[socket.socket, socket.socket]:
    """Listeners on two ports in a row."""
    while True:
        first = socket.create_server(("127.0.0.1", 0))
        try:
            return first, socket.create_server(("127.0.0.1", first.getsockname()[1] + 1))
        except OSError:
            first.close()


def _accept(listener: socket.socket, handler: Callable[[socket.socket], None]) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_guarded, args=(connection, handler), daemon=True).start()


def _guarded(connection: socket.socket, handler: Callable[[socket.socket], None]) -> None:
    with connection, suppress(OSError, struct.error):
        handler(connection)


def _serve(connection: socket.socket, tpm: Swtpm) -> None:
    while struct.unpack(">I", connection.recv(4, socket.MSG_WAITALL))[0] == _SEND_COMMAND:
        _, size = struct.unpack(">BI", connection.recv(5, socket.MSG_WAITALL))
        command = connection.recv(size, socket.MSG_WAITALL)
        with socket.socket(socket.AF_UNIX) as upstream:
            upstream.connect(str(tpm.path))
            upstream.sendall(command)
            response = message(upstream)
        connection.sendall(struct.pack(">I", len(response)) + response + bytes(4))


def _acknowledge(connection: socket.socket) -> None:
    while struct.unpack(">I", connection.recv(4, socket.MSG_WAITALL))[0] != _SESSION_END:
        connection.sendall(bytes(4))
