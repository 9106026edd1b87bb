"""A small TPM resource manager before a swtpm, in the manner of the kernel's /dev/tpmrm0.

Each client has a socket, and a space of its own: between two commands its objects are saved and flushed, its sessions
saved, so that clients see virtual handles, and nobody else's. Sessions saved long ago run into the TPM's context gap.
(TCG TSS 2.0 TAB and Resource Manager Specification; TPM 2.0 Library, part 1, 30.)
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.simulators.faulty_tpm import message
from tests.simulators.swtpm import Swtpm

_HEADER = struct.Struct(">HII")
_NO_SESSIONS = 0x8001
CONTEXT_LOAD, CONTEXT_SAVE, FLUSH_CONTEXT, GET_CAPABILITY, START_AUTH_SESSION = 0x161, 0x162, 0x165, 0x17A, 0x176
_TRANSIENT, _HMAC_SESSION, _POLICY_SESSION = 0x80, 0x02, 0x03
_COMMANDS, _HANDLES = 2, 1
CONTEXT_GAP = 0x901
_NOTHING_SPECIAL = struct.pack(">IIH16sHBHH", 0x40000007, 0x40000007, 16, bytes(16), 0, 0, 0x0010, 0x000B)
"""Parameters of an HMAC session with SHA-256, neither salted nor bound."""


@dataclass
class Space:
    """A client's objects by virtual handle, and its sessions: what each was saved as."""

    objects: dict[int, bytes] = field(default_factory=dict[int, bytes])
    sessions: dict[int, bytes] = field(default_factory=dict[int, bytes])
    made: int = 0
    commands: int = 0


@dataclass
class ResourceManager:
    tpm: Swtpm
    spaces: dict[str, Space] = field(default_factory=dict[str, Space])
    _turn: threading.Lock = field(default_factory=threading.Lock)
    _listeners: list[socket.socket] = field(default_factory=list[socket.socket])
    _attributes: dict[int, tuple[int, bool]] = field(default_factory=dict[int, tuple[int, bool]])

    def client(self, name: str) -> str:
        """The TCTI of a new client."""
        space = self.spaces[name] = Space()
        path = self.tpm.folder / f"rm-{name}.sock"
        for place, control in ((path, False), (Path(f"{path}.ctrl"), True)):
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(place))
            listener.listen(16)
            self._listeners.append(listener)
            threading.Thread(target=self._accept, args=(listener, space, control), daemon=True).start()
        return f"swtpm:path={path}"

    def held(self, name: str) -> int:
        """How many objects and sessions the client has."""
        space = self.spaces[name]
        return len(space.objects) + len(space.sessions)

    def reset(self) -> None:
        """Reset the TPM between two commands: nobody has anything in it any more."""
        with self._turn:
            for space in self.spaces.values():
                space.objects.clear()
                space.sessions.clear()
            self.tpm.reset()

    def close(self) -> None:
        for listener in self._listeners:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        with self._turn:
            for space in self.spaces.values():
                for handle in space.sessions:
                    # One that a reset made an end of is gone already.
                    self._forward(_HEADER.pack(_NO_SESSIONS, 14, FLUSH_CONTEXT) + struct.pack(">I", handle))

    def keep_a_session(self) -> None:
        """Have a session that its program never uses again: it stays saved until the TPM is reset."""
        with self._turn:
            started = self._send(START_AUTH_SESSION, _NOTHING_SPECIAL)
            self._save(struct.unpack_from(">I", started)[0])

    def storm(self, count: int) -> int:
        """Load and save a session so many times, as its use by a busy client makes the kernel do. Returns how often
        it went before the TPM refused to."""
        with self._turn, socket.socket(socket.AF_UNIX) as line:
            line.connect(str(self.tpm.path))

            def send(code: int, body: bytes) -> tuple[int, bytes]:
                line.sendall(_HEADER.pack(_NO_SESSIONS, 10 + len(body), code) + body)
                answer = message(line)
                return _HEADER.unpack_from(answer)[2], answer[10:]

            _, started = send(START_AUTH_SESSION, _NOTHING_SPECIAL)
            handle = started[:4]
            for done in range(count):
                code, saved = send(CONTEXT_SAVE, handle)
                if code == CONTEXT_GAP:
                    send(FLUSH_CONTEXT, handle)
                    return done
                assert code == 0, hex(code)
                assert send(CONTEXT_LOAD, saved)[0] == 0
            send(FLUSH_CONTEXT, handle)
            return count

    def _accept(self, listener: socket.socket, space: Space, control: bool) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            serve = self._serve_control if control else self._serve
            threading.Thread(target=serve, args=(connection, space), daemon=True).start()

    def _serve_control(self, connection: socket.socket, _space: Space) -> None:
        with connection, suppress(OSError):
            while connection.recv(4096):
                connection.sendall(bytes(4))

    def _serve(self, connection: socket.socket, space: Space) -> None:
        with connection, suppress(OSError):
            while command := message(connection):
                with self._turn:
                    response = self._within(space, command)
                connection.sendall(response)

    def _within(self, space: Space, command: bytes) -> bytes:
        """One command in the client's space."""
        space.commands += 1
        loaded = {virtual: self._load(saved) for virtual, saved in space.objects.items()}
        real = {virtual: handle for virtual, handle in loaded.items() if handle is not None}
        # What does not load any more is forgotten, as the kernel does: a reset makes an end of saved contexts.
        space.sessions = {handle: b"" for handle, saved in space.sessions.items() if self._load(saved) is not None}
        code = _HEADER.unpack_from(command)[2]
        response = self._forward(self._mapped(command, code, real))
        if _HEADER.unpack_from(response)[2] == 0:
            response = self._answered(space, command, response, code, real)
        space.objects = {virtual: self._save(handle) for virtual, handle in real.items()}
        for handle in real.values():
            self._send(FLUSH_CONTEXT, struct.pack(">I", handle))
        space.sessions = {handle: self._save(handle) for handle in space.sessions}
        return response

    def _mapped(self, command: bytes, code: int, real: dict[int, int]) -> bytes:
        count = 1 if code == FLUSH_CONTEXT else self._commands().get(code, (0, False))[0]
        handles = struct.unpack_from(f">{count}I", command, 10)
        # A handle that is not the client's is none at all.
        mapped = [real.get(handle, 0x80FFFFFF) if handle >> 24 == _TRANSIENT else handle for handle in handles]
        return command[:10] + struct.pack(f">{count}I", *mapped) + command[10 + 4 * count :]

    def _answered(self, space: Space, command: bytes, response: bytes, code: int, real: dict[int, int]) -> bytes:
        if code == FLUSH_CONTEXT:
            [flushed] = struct.unpack_from(">I", command, 10)
            real.pop(flushed, None)
            space.sessions.pop(flushed, None)
        elif code == CONTEXT_SAVE:
            # The kernel keeps a session that its client saved away from its own bookkeeping.
            space.sessions.pop(struct.unpack_from(">I", command, 10)[0], None)
        elif code == GET_CAPABILITY and struct.unpack_from(">I", command, 10)[0] == _HANDLES:
            kind = command[14]
            if kind in {_TRANSIENT, _HMAC_SESSION, _POLICY_SESSION}:
                own = [*real] if kind == _TRANSIENT else [handle for handle in space.sessions if handle >> 24 == kind]
                body = struct.pack(f">BII{len(own)}I", 0, _HANDLES, len(own), *own)
                return _HEADER.pack(_NO_SESSIONS, 10 + len(body), 0) + body
        elif self._commands().get(code, (0, False))[1]:
            [handle] = struct.unpack_from(">I", response, 10)
            if handle >> 24 == _TRANSIENT:
                space.made += 1
                real[0x80000000 + space.made] = handle
                return response[:10] + struct.pack(">I", 0x80000000 + space.made) + response[14:]
            space.sessions[handle] = b""
        return response

    def _commands(self) -> dict[int, tuple[int, bool]]:
        """For each command its number of handles, and whether it returns one (TPMA_CC; part 2, 8.9)."""
        if not self._attributes:
            answer = self._send(GET_CAPABILITY, struct.pack(">III", _COMMANDS, 0, 256))
            for [value] in struct.iter_unpack(">I", answer[9:]):
                self._attributes[value & 0xFFFF] = (value >> 25 & 7, bool(value >> 28 & 1))
        return self._attributes

    def _load(self, saved: bytes) -> int | None:
        answer = self._forward(_HEADER.pack(_NO_SESSIONS, 10 + len(saved), CONTEXT_LOAD) + saved)
        return None if _HEADER.unpack_from(answer)[2] else int.from_bytes(answer[10:14])

    def _save(self, handle: int) -> bytes:
        return self._send(CONTEXT_SAVE, struct.pack(">I", handle))

    def _send(self, code: int, body: bytes) -> bytes:
        answer = self._forward(_HEADER.pack(_NO_SESSIONS, 10 + len(body), code) + body)
        response_code = _HEADER.unpack_from(answer)[2]
        assert response_code == 0, f"{code:#x}: {response_code:#x}"
        return answer[10:]

    def _forward(self, command: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX) as upstream:
            upstream.connect(str(self.tpm.path))
            upstream.sendall(command)
            return message(upstream)


@contextmanager
def before(tpm: Swtpm) -> Generator[ResourceManager]:
    """A resource manager for as long as the block lasts; the TPM is empty after it."""
    manager = ResourceManager(tpm)
    try:
        yield manager
    finally:
        manager.close()
