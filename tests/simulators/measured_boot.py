"""Small logs of a boot, made up, and the registers that they lead to: a firmware's event log, and IMA's list."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field

from attestors.tpm.pcrs import IMA_PCR
from tests.simulators.soft_tpm import BANKS, SoftTpm

_LOGGED = ("sha1", "sha256", "sha384", "sha512")
NO_ACTION = 0x03
SEPARATOR = 0x04
POST_CODE = 0x01
IPL = 0x0D
VARIABLE_DRIVER_CONFIG = 0x80000001
HASH_LIST = bytes.fromhex("2616c4c14c509240aca941f936934328")
GLOBAL_VARIABLE = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")


def _digests(data: bytes) -> dict[str, bytes]:
    return {bank: hashlib.new(bank, data).digest() for bank in _LOGGED}


@dataclass
class MeasuredBoot:
    """Measures into a TPM what it logs."""

    tpm: SoftTpm
    event_log: bytes = b""
    events: list[bytes] = field(default_factory=list[bytes])
    """Those of the log, with its header."""
    ima: bytes = b""
    sizes: list[int] = field(default_factory=list[int])
    """Of the IMA list after each entry."""

    def __post_init__(self) -> None:
        algorithms = b"".join(struct.pack("<HH", BANKS[bank], hashlib.new(bank).digest_size) for bank in _LOGGED)
        header = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, len(_LOGGED)) + algorithms + b"\0"
        self._log(struct.pack("<II20sI", 0, NO_ACTION, bytes(20), len(header)) + header)

    def _log(self, event: bytes) -> None:
        self.events.append(event)
        self.event_log += event

    def measure(self, pcr: int, kind: int, data: bytes, measured: bytes | None = None) -> None:
        """An event; `measured` is what its digests are of, where that is not the event's data."""
        digests = _digests(data if measured is None else measured)
        event = struct.pack("<III", pcr, kind, len(digests))
        for bank, digest in digests.items():
            event += struct.pack("<H", BANKS[bank]) + digest
        self._log(event + struct.pack("<I", len(data)) + data)
        self.tpm.extend(pcr, digests)

    def boot(
        self, *, secure: bool = True, command_line: str = "root=/dev/vda1 quiet", loader: bytes = b"loader"
    ) -> None:
        """Firmware with Secure Boot, separators, and a boot loader that tells its command line (GRUB, PCR 8)."""
        self.measure(0, POST_CODE, b"firmware 1")
        self.measure(7, VARIABLE_DRIVER_CONFIG, variable("SecureBoot", bytes((secure,))))
        for name in ("PK", "KEK"):
            self.measure(7, VARIABLE_DRIVER_CONFIG, variable(name, _signature_list(hashlib.sha256(name.encode()))))
        for pcr in range(8):
            self.measure(pcr, SEPARATOR, bytes(4))
        self.measure(4, IPL, loader)
        text = f"kernel_cmdline: /vmlinuz {command_line}".encode()
        self.measure(8, IPL, text + b"\0", text.removeprefix(b"kernel_cmdline: "))

    def aggregate(self, bank: str = "sha256") -> None:
        """The beginning of IMA's list."""
        values = b"".join(self.tpm.pcrs[bank][number] for number in range(10))
        self.run("boot_aggregate", hashlib.new(bank, values).digest(), bank)

    def run(self, path: str, digest: bytes | None = None, algorithm: str = "sha256") -> None:
        """A file that IMA measures, template ima-ng."""
        found = digest if digest is not None else hashlib.sha256(path.encode()).digest()
        fields = [algorithm.encode() + b":\0" + found, path.encode() + b"\0"]
        data = b"".join(struct.pack("<I", len(each)) + each for each in fields)
        self.ima += struct.pack("<I", IMA_PCR) + hashlib.sha1(data).digest()  # noqa: S324 - as IMA has it
        self.ima += struct.pack("<I", len("ima-ng")) + b"ima-ng" + struct.pack("<I", len(data)) + data
        self.tpm.extend(IMA_PCR, _digests(data))
        self.sizes.append(len(self.ima))


def _signature_list(found: hashlib._Hash) -> bytes:
    """EFI_SIGNATURE_LIST of one SHA-256 (UEFI 2.10, 32.4.1)."""
    return HASH_LIST + struct.pack("<III", 28 + 48, 0, 48) + bytes(16) + found.digest()


def variable(name: str, value: bytes) -> bytes:
    """UEFI_VARIABLE_DATA of a global variable."""
    return GLOBAL_VARIABLE + struct.pack("<QQ", len(name), len(value)) + name.encode("utf-16-le") + value
