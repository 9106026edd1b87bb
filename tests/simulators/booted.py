"""A software TPM in a machine that booted: its registers, and what its kernel would tell in securityfs.

The boots are those of tests/machines, which really happened: firmware's events are extended in their order and IMA's
entries after them, so that log, list and registers agree as they did in the machine.
"""

from __future__ import annotations

import hashlib
import socket
import struct
import subprocess
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from attestors.tpm.event_log import parser
from attestors.tpm.event_log.event_types import NO_ACTION
from attestors.tpm.ima.records import VIOLATION, hashed, scan
from attestors.tpm.pcrs import BANKS, COUNT, PcrValues
from tests.simulators import ima_lists
from tests.simulators.swtpm import Swtpm
from tests.simulators.swtpm import started as powered

MACHINES: Final = Path(__file__).parent.parent / "machines"
GOLDEN: Final = "golden"

_STARTUP, _SHUTDOWN, _PCR_EXTEND, _PCR_READ = 0x144, 0x145, 0x182, 0x17E
_SESSIONS, _PASSWORD = 0x8002, 0x40000009
_ALGORITHMS: Final = {"sha1": 0x0004, "sha256": 0x000B, "sha384": 0x000C, "sha512": 0x000D}


@dataclass(frozen=True)
class Boot:
    """What a machine of tests/machines left behind, or what a test makes of it. `later` has more IMA entries."""

    event_log: bytes
    ima: bytes

    @classmethod
    def of(cls, machine: str = GOLDEN, *, later: bool = False) -> Boot:
        folder = MACHINES / machine
        return cls((folder / "event_log").read_bytes(), (folder / ("later-ima" if later else "ima")).read_bytes())


def registers(machine: str, bank: str, *, later: bool = False) -> PcrValues:
    """What the machine's own kernel said of its TPM."""
    lines = (MACHINES / machine / ("later-pcrs" if later else "pcrs")).read_text().splitlines()
    found = (line.split() for line in lines)
    return PcrValues(bank, {int(number): bytes.fromhex(value) for name, number, value in found if name == bank})


@dataclass
class Booted:
    """`tpm` is switched on. Whoever else uses it meanwhile does so through a resource manager: swtpm has one client.

    `securityfs` is what /sys/kernel/security would be.
    """

    tpm: Swtpm
    securityfs: Path
    boot: Boot = field(default_factory=Boot.of)

    @property
    def event_log(self) -> Path:
        return self.securityfs / "tpm0" / "binary_bios_measurements"

    @property
    def ima(self) -> Path:
        return self.securityfs / "ima" / "binary_runtime_measurements"

    def start(self, boot: Boot | None = None, *, orderly: bool = True) -> None:
        """Reset the TPM and boot: the same again, or another one.

        An `orderly` end is told to the TPM before its reset, as a kernel does it; after another one its clock is not
        safe.
        """
        self.boot = boot or self.boot
        log = parser.parse(self.boot.event_log)
        if orderly:
            self._say(_SHUTDOWN)
        self._control("-i")
        self._control("-l", str(log.locality))
        self._say(_STARTUP)
        self._control("-l", "0")
        for event in log.events:
            if event.type != NO_ACTION:
                self.extend(event.pcr, event.digests)
        for path, content in ((self.event_log, self.boot.event_log), (self.ima, b"")):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        self.append(self.boot.ima)

    def reboot(self, machine: str | None = None, *, orderly: bool = True) -> None:
        """As another machine of tests/machines, or as before; what was measured since is forgotten."""
        self.start(Boot.of(machine) if machine is not None else None, orderly=orderly)

    def measure(self, path: str, content: bytes = b"", signature: bytes = b"") -> None:
        """The kernel measures a file."""
        self.append(ima_lists.entry(path, hashlib.sha256(content).digest(), signature))

    def violate(self, path: str) -> None:
        """The kernel notes that a file may have changed while it was measured."""
        self.append(ima_lists.violation(path))

    def append(self, entries: bytes) -> None:
        """Entries of an IMA list, extended and written behind those that there are."""
        for record in scan(entries):
            data = hashed(record)
            self.extend(
                record.pcr,
                {
                    bank: b"\xff" * size if record.digest == VIOLATION else hashlib.new(bank, data).digest()
                    for bank, size in BANKS.items()
                },
            )
        with self.ima.open("ab") as file:
            file.write(entries)

    def extend(self, pcr: int, digests: Mapping[str, bytes]) -> None:
        """TPM2_PCR_Extend (part 3, 22.2); banks that the TPM has switched off take no notice."""
        values = b"".join(struct.pack(">H", _ALGORITHMS[bank]) + digest for bank, digest in digests.items())
        nobody = struct.pack(">IHBH", _PASSWORD, 0, 0, 0)
        body = struct.pack(">II", pcr, len(nobody)) + nobody + struct.pack(">I", len(digests)) + values
        answer = self._exchange(struct.pack(">HII", _SESSIONS, 10 + len(body), _PCR_EXTEND) + body)
        code = struct.unpack_from(">I", answer, 6)[0]
        assert code == 0, f"TPM2_PCR_Extend: {code:#x}"

    def registers(self, bank: str) -> PcrValues:
        """All of a bank's, as they are now (TPM2_PCR_Read)."""
        values: dict[int, bytes] = {}
        for number in range(COUNT):
            wanted = (1 << number).to_bytes(3, "little")
            code, answer = self.tpm.command(_PCR_READ, struct.pack(">IHB3s", 1, _ALGORITHMS[bank], 3, wanted))
            assert code == 0, f"TPM2_PCR_Read: {code:#x}"
            values[number] = answer[-BANKS[bank] :]
        return PcrValues(bank, values)

    def _say(self, command: int) -> None:
        """TPM2_Startup or TPM2_Shutdown, with TPM_SU_CLEAR."""
        code, _ = self.tpm.command(command, struct.pack(">H", 0))
        assert code == 0, f"command {command:#x}: {code:#x}"

    def _exchange(self, command: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(60)
            connection.connect(str(self.tpm.path))
            connection.sendall(command)
            return connection.recv(4096)

    def _control(self, *arguments: str) -> None:
        done = subprocess.run(
            ["swtpm_ioctl", "--unix", f"{self.tpm.path}.ctrl", *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def started(folder: Path, boot: Boot | None = None) -> Generator[Booted]:
    """A new TPM in a machine that booted, until the block ends. `folder`, the TPM's, has a short path."""
    with powered(folder) as tpm:
        yield of(tpm, boot)


def of(tpm: Swtpm, boot: Boot | None = None) -> Booted:
    """A machine that booted with this TPM, which is switched on."""
    machine = Booted(tpm, tpm.folder / "securityfs")
    machine.start(boot)
    return machine
