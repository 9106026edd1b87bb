"""A software TPM 2.0 with state of its own, on Unix sockets."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.simulators.spire import eventually

_NO_SESSIONS = 0x8001
_ACCEPTS = "00010000"  # __SO_ACCEPTCON in /proc/net/unix
STORAGE = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt"
"""The attributes of an SRK, as tpm2-tools write them."""
SIGNING = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign"
"""Those of a signing key."""


@dataclass
class Swtpm:
    """A swtpm with its state. `path` is its command socket, which serves one connection at a time."""

    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def path(self) -> Path:
        return self.folder / "tpm.sock"

    @property
    def tcti(self) -> str:
        return f"swtpm:path={self.path}"

    def start(self) -> None:
        """Power it on, with TPM2_Startup(CLEAR) as firmware does it."""
        state = self.folder / "state"
        state.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            [
                *("swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}", "--flags", "not-need-init,startup-clear"),
                *("--server", f"type=unixio,path={self.path}", "--ctrl", f"type=unixio,path={self.path}.ctrl"),
                *("--log", f"file={self.folder / 'swtpm.log'}"),
            ],
            stdin=subprocess.DEVNULL,
        )
        eventually(self._listens, "swtpm's socket")

    def _listens(self) -> bool:
        """On both sockets. A look at the kernel's list for the server's: it takes one connection at a time."""
        listening = (line.split() for line in Path("/proc/net/unix").read_text(errors="replace").splitlines()[1:])
        if not any(fields[-1] == str(self.path) and fields[3] == _ACCEPTS for fields in listening):
            return False
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(f"{self.path}.ctrl") == 0

    def power_off(self) -> None:
        """Pull its plug: nothing is saved that is not saved already."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(30)
            self.process = None
        for path in (self.path, self.folder / "tpm.sock.ctrl"):
            path.unlink(missing_ok=True)

    def reset(self) -> None:
        self.power_off()
        self.start()

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

    def tool(self, name: str, *arguments: str) -> str:
        """One of tpm2-tools, and what it says."""
        done = subprocess.run(
            [f"tpm2_{name}", *arguments],
            env={**os.environ, "TPM2TOOLS_TCTI": self.tcti},
            cwd=self.path.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def make_srk(self, handle: str = "0x81000001") -> None:
        """Make an SRK persistent, as tpm2-tools do it."""
        self.tool("createprimary", "-C", "o", "-g", "sha256", "-G", "ecc", "-a", STORAGE, "-c", "srk.ctx")
        self.tool("flushcontext", "-t")
        self.tool("evictcontrol", "-C", "o", "-c", "srk.ctx", handle)
        self.tool("flushcontext", "-t")

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
    tpm = Swtpm(folder)
    tpm.start()
    try:
        yield tpm
    finally:
        tpm.power_off()
