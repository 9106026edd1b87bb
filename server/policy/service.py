"""The worker process: it has the engine, compiles one policy, and answers one input after the other.

A frame is four bytes of length, most significant first, and JSON: first a `Load`, answered with a `Verdict`, then inputs, each
answered likewise. Once the policy is loaded the process can open nothing more, neither files nor sockets, and its memory
has an end; it never had its parent's environment.
"""

from __future__ import annotations

import os
import resource
import socket
import struct
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

import msgspec
from regopy import Interpreter
from regopy.interpreter import Bundle, BundleFormat
from regopy.rego_shared import RegoError

from server.policy import plan
from server.policy.plan import PolicyFault

LENGTH: Final = struct.Struct(">I")
FRAME_LIMIT: Final = 64 << 20
MEMORY: Final = 1 << 20
"""KiB that the process may hold. The engine's allocator reserves address space of 256 GiB, so that no rlimit(2) fits."""
LOOK: Final = 0.02
"""Seconds between looks at what it holds."""
ENTRYPOINT: Final = "spire/result"
MODULE: Final = "spire.rego"


class Load(msgspec.Struct, frozen=True):
    """A policy's text, and that of its data, a JSON object."""

    module: str
    data: str


class Verdict(msgspec.Struct, frozen=True, omit_defaults=True):
    """`error` is one line, about that `line` of the policy where it is not 0; without one `value` is what the policy's `result` is, None when that is undefined."""

    error: str = ""
    line: int = 0
    value: object = None


class Policy:
    """A compiled policy. Raises PolicyFault."""

    def __init__(self, load: Load) -> None:
        self._interpreter = Interpreter()
        try:
            self._interpreter.add_module(MODULE, load.module)
            self._interpreter.add_data_json(load.data)
            self._bundle = self._interpreter.build(None, [ENTRYPOINT])
        except RegoError as error:
            raise _explained(str(error), load.module) from error
        if not self._bundle.ok():
            raise PolicyFault("it is no Rego that can be compiled")
        plan.check(_plan(self._interpreter, self._bundle), self._interpreter.is_builtin)

    def verdict(self, document: bytes) -> object:
        """The result for an input, which is a JSON object."""
        try:
            # As text: values that are handed over one by one end at a NUL, and at 63 bits.
            self._interpreter.set_input_term(document.decode())
            output = self._interpreter.query_bundle_entrypoint(self._bundle, ENTRYPOINT)
            if not output.ok():
                raise PolicyFault("its rules contradict each other, or fail, for this call")
            found = msgspec.json.decode(str(output)) if output.results and output.results[0].expressions else None
        except (RegoError, ValueError, UnicodeError) as error:
            raise PolicyFault("it cannot be evaluated for this call") from error
        if found is None:
            return None
        [value] = output.results[0].expressions
        return value


def _plan(interpreter: Interpreter, bundle: Bundle) -> plan.Object:
    with tempfile.TemporaryDirectory() as folder:
        interpreter.save_bundle(folder, bundle, BundleFormat.JSON)
        return msgspec.json.decode((Path(folder) / "plan.json").read_bytes(), type=dict[str, object])


def _explained(text: str, module: str) -> PolicyFault:
    """The engine's error: `(error N:spire.rego|offset|length (errormsg M:what) …`."""
    _, found, rest = text.partition(f"{MODULE}|")
    _, _, message = text.partition("errormsg ")
    message = message.partition(":")[2].partition(")")[0].strip() or "it cannot be parsed"
    offset = rest.partition("|")[0]
    if not found or not offset.isdigit():
        return PolicyFault(message)
    return PolicyFault(message, module.encode()[: int(offset)].count(10) + 1)


def main() -> int:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.Thread(target=_watch_memory, daemon=True).start()
    with socket.socket(fileno=0) as connection:
        first = _receive(connection)
        if first is None:
            return 0
        try:
            policy = Policy(msgspec.json.decode(first, type=Load))
        except PolicyFault as fault:
            _send(connection, Verdict(error=str(fault), line=fault.line))
            return 0
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
        _send(connection, Verdict())
        while (document := _receive(connection)) is not None:
            try:
                verdict = Verdict(value=policy.verdict(document))
            except PolicyFault as fault:
                verdict = Verdict(error=str(fault), line=fault.line)
            _send(connection, verdict)
    return 0


def _watch_memory() -> None:
    """End the process that holds too much; the engine runs outside of Python's lock."""
    while resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < MEMORY:
        time.sleep(LOOK)
    os._exit(1)


def _receive(connection: socket.socket) -> bytes | None:
    head = _exactly(connection, LENGTH.size)
    return None if head is None else _exactly(connection, LENGTH.unpack(head)[0])


def _exactly(connection: socket.socket, size: int) -> bytes | None:
    found = bytearray()
    while len(found) < size:
        data = connection.recv(min(size - len(found), 1 << 20))
        if not data:
            return None
        found += data
    return bytes(found)


def _send(connection: socket.socket, verdict: Verdict) -> None:
    body = msgspec.json.encode(verdict)
    connection.sendall(LENGTH.pack(len(body)) + body)


if __name__ == "__main__":
    sys.exit(main())
