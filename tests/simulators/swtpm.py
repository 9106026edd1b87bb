"""A software TPM 2.0 with state of its own, on Unix sockets."""

from __future__ import annotations

import socket
import struct
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.simulators.spire import eventually

_NO_SESSIONS = 0x8001


@dataclass(frozen=True, slots=True)
class Swtpm:
    """A running swtpm. `path` is its command socket, which serves one connection at a time."""

    path: Path

    @property
    def tcti(self) -> str:
        return f"swtpm:path={self.path}"

    def command(self, code: int, parameters: bytes = b"") -> tuple[int, bytes]:
        """One command without sessions (TPM 2.0 Library, part 1, 18). Returns the response code and parameters."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(30)
            connection.connect(str(self.path))
            connection.sendall(struct.pack(">HII", _NO_SESSIONS, 10 + len(parameters), code) + parameters)
            answer = connection.recv(4096)
        _, size, response_code = struct.unpack_from(">HII", answer)
        assert size == len(answer)
        return response_code, answer[10:]

    def handles(self) -> list[int]:
        """Every object and session in it: loaded, saved, and persistent ones (TPM2_GetCapability, TPM_CAP_HANDLES)."""
        found: list[int] = []
        for first in (0x80000000, 0x81000000, 0x02000000, 0x03000000):
            _, answer = self.command(0x17A, struct.pack(">III", 1, first, 100))
            found += struct.unpack_from(f">{struct.unpack_from('>I', answer, 5)[0]}I", answer, 9)
        return found


@contextmanager
def started(folder: Path) -> Generator[Swtpm]:
    """A new TPM, started and ready, until the block ends."""
    state = folder / "state"
    state.mkdir(parents=True)
    path = folder / "tpm.sock"
    process = subprocess.Popen(
        [
            *("swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}", "--flags", "not-need-init,startup-clear"),
            *("--server", f"type=unixio,path={path}", "--ctrl", f"type=unixio,path={path}.ctrl"),
            *("--log", f"file={folder / 'swtpm.log'}"),
        ],
        stdin=subprocess.DEVNULL,
    )
    try:
        eventually(path.exists, "swtpm's socket")
        yield Swtpm(path)
    finally:
        process.terminate()
        process.wait(30)
