"""Event logs as a machine's firmware and boot loaders write them, event by event, and the PCRs that they come to."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from attestors.tpm.pcrs import PcrValues

ALGORITHMS = {"sha1": 0x0004, "sha256": 0x000B, "sha384": 0x000C, "sha512": 0x000D}

NO_ACTION = 0x3
SEPARATOR = 0x4
EVENT_TAG = 0x6
S_CRTM_VERSION = 0x8
IPL = 0xD
VARIABLE_DRIVER_CONFIG = 0x80000001
VARIABLE_BOOT = 0x80000002
APPLICATION = 0x80000003
DRIVER = 0x80000004
ACTION = 0x80000007
VARIABLE_AUTHORITY = 0x800000E0

GLOBAL = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
IMAGE_SECURITY = UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
SHIM = UUID("605dab50-e046-4300-abb6-3dd810dd8b23")
X509 = UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
SHA256 = UUID("c1c41626-504c-4092-aca9-41f936934328")
X509_SHA256 = UUID("3bd2a492-96c0-4079-b420-fcf98ef103ed")
OWNER = UUID("77fa9abd-0359-4d32-bd60-28f4e78f784b")


def certificate(name: str, size: int = 300) -> bytes:
    """Something with the outer shape of a certificate's DER, and a content of its own."""
    body = (hashlib.sha512(name.encode()).digest() * (size // 64 + 1))[:size]
    return b"\x30\x82" + size.to_bytes(2) + body


def signature_list(kind: UUID, signatures: Sequence[bytes], header: bytes = b"") -> bytes:
    """EFI_SIGNATURE_LIST (UEFI 2.10, 32.4.1) of signatures of one size."""
    size = 16 + len(signatures[0])
    body = b"".join(OWNER.bytes_le + one for one in signatures)
    return kind.bytes_le + struct.pack("<III", 28 + len(header) + len(body), len(header), size) + header + body


def variable_data(name: str, data: bytes, guid: UUID = GLOBAL) -> bytes:
    """UEFI_VARIABLE_DATA (Platform Firmware Profile, 10.2.6)."""
    return guid.bytes_le + struct.pack("<QQ", len(name), len(data)) + name.encode("utf-16-le") + data


def device_path(path: str) -> bytes:
    """A PCI device, the file on it, and the end (UEFI 2.10, 10.3)."""
    text = path.encode("utf-16-le") + b"\0\0"
    return b"\x01\x01\x06\0\0\x02" + b"\x04\x04" + struct.pack("<H", 4 + len(text)) + text + b"\x7f\xff\x04\0"


def image_load(path: str) -> bytes:
    """EFI_IMAGE_LOAD_EVENT (10.2.4)."""
    where = device_path(path) if path else b""
    return struct.pack("<QQQQ", 0x7E000000, 0x1000, 0, len(where)) + where


@dataclass
class EventLogBuilder:
    """Writes a crypto-agile log, or with `agile=False` one of SHA-1 alone as TPMs 1.2 have it.

    `locality` of TPM2_Startup is told where it is given. Methods return the builder, so that calls can be chained.
    """

    banks: Sequence[str] = ("sha1", "sha256")
    agile: bool = True
    locality: int | None = None
    vendor: bytes = b""
    records: list[bytes] = field(default_factory=list[bytes])
    values: dict[str, dict[int, bytes]] = field(default_factory=dict[str, dict[int, bytes]])

    def __post_init__(self) -> None:
        if self.agile:
            algorithms = b"".join(
                struct.pack("<HH", ALGORITHMS[bank], hashlib.new(bank).digest_size) for bank in self.banks
            )
            head = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, len(self.banks))
            self.records.append(
                self._legacy(0, NO_ACTION, b"\0" * 20, head + algorithms + bytes((len(self.vendor),)) + self.vendor)
            )
        else:
            self.banks = ("sha1",)
        if self.locality is not None:
            self.no_action(b"StartupLocality\0" + bytes((self.locality,)))

    def extend(
        self,
        pcr: int,
        kind: int,
        data: bytes,
        measured: bytes | None = None,
        *,
        digests: Mapping[str, bytes] | None = None,
    ) -> EventLogBuilder:
        """An event whose digests are of `measured`, of `data` where that is not given, or `digests` as they are."""
        what = data if measured is None else measured
        found = digests or {bank: hashlib.new(bank, what).digest() for bank in self.banks}
        for bank, digest in found.items():
            registers = self.values.setdefault(bank, {})
            before = registers.get(pcr, self._reset(bank, pcr))
            registers[pcr] = hashlib.new(bank, before + digest).digest()
        return self.record(pcr, kind, data, found)

    def no_action(self, data: bytes, pcr: int = 0) -> EventLogBuilder:
        return self.record(pcr, NO_ACTION, data, {bank: bytes(hashlib.new(bank).digest_size) for bank in self.banks})

    def record(self, pcr: int, kind: int, data: bytes, digests: Mapping[str, bytes]) -> EventLogBuilder:
        """A line in the log that nothing was extended by."""
        if not self.agile:
            self.records.append(self._legacy(pcr, kind, digests["sha1"], data))
            return self
        listed = b"".join(struct.pack("<H", ALGORITHMS[bank]) + digest for bank, digest in digests.items())
        head = struct.pack("<III", pcr, kind, len(digests))
        self.records.append(head + listed + struct.pack("<I", len(data)) + data)
        return self

    def separators(self, *pcrs: int, value: bytes = b"\0\0\0\0") -> EventLogBuilder:
        for pcr in pcrs:
            self.extend(pcr, SEPARATOR, value)
        return self

    def variable(self, name: str, data: bytes, guid: UUID = GLOBAL) -> EventLogBuilder:
        return self.extend(7, VARIABLE_DRIVER_CONFIG, variable_data(name, data, guid))

    def authority(self, der: bytes, name: str = "db", guid: UUID = IMAGE_SECURITY) -> EventLogBuilder:
        """The certificate of db that verified an image."""
        return self.extend(7, VARIABLE_AUTHORITY, variable_data(name, OWNER.bytes_le + der, guid))

    def image(self, path: str, content: bytes, pcr: int = 4, kind: int = APPLICATION) -> EventLogBuilder:
        """A PE image; `content` stands for what its Authenticode hash is of."""
        return self.extend(pcr, kind, image_load(path), content)

    def grub_command(self, text: str) -> EventLogBuilder:
        return self._grub("grub_cmd: ", text)

    def grub_command_line(self, text: str) -> EventLogBuilder:
        return self._grub("kernel_cmdline: ", text)

    def grub_file(self, path: str, content: bytes) -> EventLogBuilder:
        return self.extend(9, IPL, path.encode() + b"\0", content)

    def _grub(self, prefix: str, text: str) -> EventLogBuilder:
        return self.extend(8, IPL, f"{prefix}{text}\0".encode(), text.encode())

    def stub_command_line(self, text: str) -> EventLogBuilder:
        """systemd-stub's, in UTF-16 with its NUL."""
        return self.extend(12, IPL, f"{text}\0".encode("utf-16-le"))

    def build(self) -> bytes:
        return b"".join(self.records)

    def pcrs(self, bank: str = "sha256") -> PcrValues:
        """All 24 registers, as a TPM has them that was extended so."""
        values = self.values.get(bank, {})
        return PcrValues(bank, {pcr: values.get(pcr, self._reset(bank, pcr)) for pcr in range(24)})

    def _reset(self, bank: str, pcr: int) -> bytes:
        size = hashlib.new(bank).digest_size
        if 17 <= pcr <= 22:
            return b"\xff" * size
        return bytes(size - 1) + bytes(((self.locality or 0) if pcr == 0 else 0,))

    @staticmethod
    def _legacy(pcr: int, kind: int, digest: bytes, data: bytes) -> bytes:
        return struct.pack("<II", pcr, kind) + digest + struct.pack("<I", len(data)) + data


@dataclass(frozen=True)
class Boot:
    """A machine that boots shim, GRUB and Linux."""

    secure_boot: bool = True
    firmware: str = "Bench 1.0"
    platform_key: bytes = certificate("PK")
    exchange_keys: tuple[bytes, ...] = (certificate("KEK"),)
    allowed: tuple[bytes, ...] = (certificate("vendor CA"),)
    forbidden: tuple[bytes, ...] = (hashlib.sha256(b"revoked").digest(),)
    shim: bytes = b"shim"
    grub: bytes = b"grub"
    kernel: bytes = b"kernel"
    initrd: bytes = b"initrd"
    command_line: str = "/boot/vmlinuz root=/dev/vda1 ro quiet"


def booted(boot: Boot | None = None, banks: Sequence[str] = ("sha1", "sha256")) -> EventLogBuilder:
    """The log of that boot; what is done after it can be added."""
    boot = boot or Boot()
    log = EventLogBuilder(banks)
    log.extend(0, S_CRTM_VERSION, f"{boot.firmware}\0".encode("utf-16-le"))
    log.variable("SecureBoot", b"\x01" if boot.secure_boot else b"\x00")
    log.variable("PK", signature_list(X509, [boot.platform_key]))
    log.variable("KEK", b"".join(signature_list(X509, [one]) for one in boot.exchange_keys))
    log.variable("db", b"".join(signature_list(X509, [one]) for one in boot.allowed), IMAGE_SECURITY)
    log.variable("dbx", signature_list(SHA256, boot.forbidden) if boot.forbidden else b"", IMAGE_SECURITY)
    log.separators(7)
    log.extend(4, ACTION, b"Calling EFI Application from Boot Option")
    log.separators(0, 1, 2, 3, 4, 5, 6)
    if boot.secure_boot:
        log.authority(boot.allowed[0])
    log.image("\\EFI\\debian\\shimx64.efi", boot.shim)
    log.extend(14, IPL, b"MokList\0", b"")
    log.extend(14, IPL, b"MokListX\0", b"")
    log.extend(7, VARIABLE_AUTHORITY, variable_data("SbatLevel", b"sbat,1,2022052400\n", SHIM))
    log.image("\\EFI\\debian\\grubx64.efi", boot.grub)
    log.grub_file("(hd0,gpt1)/boot/grub/grub.cfg", b"grub.cfg")
    log.grub_command("set timeout=0")
    log.grub_command(f"linux {boot.command_line}")
    log.grub_file("/boot/vmlinuz", boot.kernel)
    log.image("", boot.kernel)
    log.grub_command_line(boot.command_line)
    log.grub_command("initrd /boot/initrd.img")
    log.grub_file("/boot/initrd.img", boot.initrd)
    log.extend(5, ACTION, b"Exit Boot Services Invocation")
    return log.extend(5, ACTION, b"Exit Boot Services Returned with Success")
