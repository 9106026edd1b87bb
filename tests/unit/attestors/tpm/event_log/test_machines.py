"""Logs of machines: those that this project boots, and where they are at hand, those of others.

Debian's tpm2_eventlog says what each replays to; it is not asked of logs that make it crash.
"""

from __future__ import annotations

import base64
import itertools
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import pytest

from attestors.tpm.event_log.facts import facts
from attestors.tpm.event_log.model import BootFacts, EventLog
from attestors.tpm.event_log.parser import parse
from attestors.tpm.event_log.replay import replay, verify
from attestors.tpm.pcrs import PcrValues, initial
from operations.errors import InvalidArgument, Refused
from tests.simulators.booted import MACHINES, registers
from tests.simulators.event_log import booted
from tests.simulators.shared_data import shared_data

MICROSOFT_UEFI_CA = "48e99b991f57fc52f76149599bff0a58c47154229b9f8d603ac40d3500248507"
MICROSOFT_WINDOWS_CA = "e8e95f0733a55e8bad7be0a1413ee23c51fcea64b3c8fa6a786935fddcc71961"
ORACLE_CRASHES = "option_rom_eventlog.bin"


def oracle(path: Path) -> dict[str, dict[int, bytes]]:
    """The registers that tpm2_eventlog comes to, by bank: what it prints last, after the events."""
    printed = subprocess.run(["tpm2_eventlog", path], capture_output=True, check=True, timeout=60).stdout
    _, mark, last = printed.rpartition(b"\npcrs:\n")
    found: dict[str, dict[int, bytes]] = {}
    bank = ""
    for line in last.decode().splitlines() if mark else ():
        key, _, value = (part.strip() for part in line.partition(":"))
        if value:
            found[bank][int(key)] = bytes.fromhex(value.removeprefix("0x"))
        else:
            bank = key
            found[bank] = {}
    return found


def assert_replays(log: EventLog, path: Path) -> None:
    expected = oracle(path)
    for bank in log.banks:
        assert replay(log, bank).values == expected.get(bank, {}), bank


def as_quoted(log: EventLog, bank: str) -> PcrValues:
    """What a TPM would quote that the log is of."""
    return PcrValues(bank, {n: initial(bank, n, log.locality) for n in range(24)} | dict(replay(log, bank).values))


def test_the_builders_logs_are_ones_to_others_too(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(booted().build())
    assert_replays(parse(path.read_bytes()), path)


@dataclass(frozen=True)
class Expected:
    """Facts of a log: how it was booted, what verified it (first bytes), and names and texts that are in it."""

    secure_boot: bool | None = None
    firmware: str | None = None
    authorities: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    files: int = 0
    command_line: str = ""
    variables: Mapping[str, int] = field(default_factory=dict[str, int])
    doubtful: bool = False
    unproven: frozenset[int] = frozenset()


DEBIAN_CA = "07964697"
KERNEL = "5f21ff"
OTHER_KERNEL = "fd2059"
DEBIAN_13_KERNEL = "a20646"
ARGUMENTS = "console=ttyS0 panic=-1 root=/dev/vda2 ima_policy=tcb"
OVMF = Expected(
    secure_boot=True,
    authorities=(MICROSOFT_UEFI_CA, DEBIAN_CA),
    images=("\\EFI\\BOOT\\BOOTX64.EFI", "\\EFI\\BOOT\\grubx64.efi", "", ""),
    files=3,
    command_line=f"/vmlinuz {ARGUMENTS}",
    variables={"PK": 1, "KEK": 2, "db": 2, "dbx": 1, "SbatLevel": 1, "MokList": 1, "MokListX": 1},
)
SEABIOS = Expected(images=("", ""))

OWN: Mapping[str, tuple[Expected, str]] = {
    "golden": (OVMF, KERNEL),
    "command-line": (replace(OVMF, command_line=f"/vmlinuz {ARGUMENTS} single"), KERNEL),
    "other-kernel": (OVMF, OTHER_KERNEL),
    "insecure": (
        replace(
            OVMF,
            secure_boot=False,
            authorities=(),
            images=("\\EFI\\BOOT\\BOOTX64.EFI", "\\EFI\\BOOT\\grubx64.efi", "vmlinuz"),
            files=2,
            command_line=f"initrd=\\initrd.img {ARGUMENTS}",
            variables={"PK": 0, "KEK": 0, "db": 0, "dbx": 0, "SbatLevel": 1},
        ),
        KERNEL,
    ),
    # GRUB 2.12 reads its configuration twice, and has the kernel's stub measure options and initrd.
    "debian13/grub": (replace(OVMF, images=OVMF.images[:3], files=5), DEBIAN_13_KERNEL),
    "debian13/systemd-boot": (
        Expected(
            secure_boot=False,
            images=("\\EFI\\BOOT\\BOOTX64.EFI", "\\vmlinuz"),
            files=1,
            command_line=f"initrd=\\initrd.img {ARGUMENTS}",
            variables={"PK": 0, "KEK": 0, "db": 0, "dbx": 0},
        ),
        DEBIAN_13_KERNEL,
    ),
    # The image has the command line; the log has only its digest, in PCR 9.
    "debian13/unified": (
        Expected(
            secure_boot=False,
            images=("\\EFI\\BOOT\\BOOTX64.EFI", ""),
            files=2,
            unproven=frozenset({9}),
            variables={"PK": 0, "KEK": 0, "db": 0, "dbx": 0},
        ),
        DEBIAN_13_KERNEL,
    ),
    "seabios": (SEABIOS, ""),
    "seabios-ngv2": (SEABIOS, ""),
    "seabios-evm": (SEABIOS, ""),
}

GCE = "GCE Virtual Firmware v1"
UBUNTU = Expected(
    secure_boot=False,
    firmware=GCE,
    images=("\\EFI\\ubuntu\\shimx64.efi", "\\EFI\\ubuntu\\grubx64.efi"),
    files=9,
    command_line="/boot/vmlinuz-5.11.0-1006-gcp root=PARTUUID=6443a6ae-e5e9-4df7-9a06-d1329e50f33c",
    variables={"PK": 1, "KEK": 1, "db": 2, "dbx": 186, "SbatLevel": 1, "MokList": 1, "MokListX": 1},
)
FRAGMENT = Expected(doubtful=True)

SHARED: Mapping[str, Expected] = {
    "coreos_36_shielded_vm_no_secure_boot_eventlog.bin": Expected(
        secure_boot=False,
        firmware=GCE,
        images=("\\EFI\\fedora\\shimx64.efi", "\\EFI\\fedora\\grubx64.efi"),
        files=8,
        command_line="(hd0,gpt3)/ostree/fedora-coreos-",
        variables={"PK": 1, "KEK": 1, "db": 2, "dbx": 186, "MokListTrusted": 1},
    ),
    "cos-101-amd-sev.bin": Expected(
        secure_boot=True,
        firmware=GCE,
        authorities=("a7b8c851", "a7b8c851"),
        images=("\\EFI\\BOOT\\BOOTX64.EFI", "\\EFI\\BOOT\\grub-lakitu.efi", "", ""),
        files=2,
        command_line="/syslinux/vmlinuz.A init=/usr/lib/systemd/systemd",
        variables={"PK": 1, "KEK": 1, "db": 1, "dbx": 4},
    ),
    # Shim before 15.3: authorities with a byte too many.
    "cos-93-amd-sev.bin": Expected(
        secure_boot=True,
        firmware=GCE,
        authorities=("a7b8c851", "a7b8c851", "a7b8c851"),
        images=("\\EFI\\BOOT\\BOOTX64.EFI", "", ""),
        files=2,
        command_line="/syslinux/vmlinuz.A init=/usr/lib/systemd/systemd",
        variables={"PK": 1, "KEK": 1, "db": 1, "dbx": 4},
    ),
    "crypto_agile_eventlog.bin": Expected(
        secure_boot=False,
        firmware="546bfb1e-1d0c-4055-a4ad-4ef4bf17b83a",
        images=("", "\\EFI\\centosgrubx64.efi"),
        variables={"PK": 1, "KEK": 1, "db": 3, "dbx": 77},
    ),
    "ebs_event_missing_eventlog.bin": Expected(
        secure_boot=False,
        firmware="590ee8c4dbd19d758ade8e88dab1596c5b27360eb2b2ed3c2612f1ce8679ffc3",
        images=("\\EFI\\debian\\grubx64.efi",),
        variables={"PK": 1, "KEK": 2, "db": 4, "dbx": 14},
    ),
    "option_rom_eventlog.bin": Expected(
        secure_boot=True,
        firmware="35bdd3d4b340c1f5a5df2fdfc88ef2ab8ad29a04c953efab5b654cf4bf4ed33a",
        authorities=(MICROSOFT_UEFI_CA, MICROSOFT_WINDOWS_CA),
        images=("", "\\EFI\\Microsoft\\Boot\\bootmgfw.efi"),
        variables={"PK": 1, "KEK": 2, "db": 3, "dbx": 78},
    ),
    "rhel8-uefi.bin": Expected(
        secure_boot=True,
        firmware=GCE,
        authorities=(MICROSOFT_UEFI_CA, "40175d4c"),
        images=("\\EFI\\redhat\\shimx64.efi", "\\EFI\\redhat\\grubx64.efi", ""),
        files=2,
        command_line="(hd0,gpt2)/boot/vmlinuz-4.18.0-240.22.1.el8_3.x86_64 root=UUID=",
        variables={"PK": 1, "KEK": 1, "db": 2, "dbx": 186},
    ),
    "sb_cert_eventlog.bin": Expected(
        secure_boot=True,
        authorities=(MICROSOFT_UEFI_CA, "ed1fe72c", "ed1fe72c"),
        images=("\\EFI\\BOOT\\BOOTX64.EFI", "", ""),
        variables={"PK": 1, "KEK": 1, "db": 4, "dbx": 77},
        doubtful=True,
    ),
    # systemd-stub before 252: the command line lacks the last byte that was hashed.
    "tpm2-tools-event-arch-linux.bin": Expected(
        secure_boot=False,
        firmware="546bfb1e-1d0c-4055-a4ad-4ef4bf17b83a",
        images=("", "\\EFI\\SYSTEMD\\SYSTEMD-BOOTX64.EFI", "\\vmlinuz-linux-lts"),
        command_line="initrd=\\intel-ucode.img initrd=\\initramfs-linux-lts.img cryptdevice=",
        variables={"PK": 1, "KEK": 2, "db": 12, "dbx": 77},
    ),
    "tpm2-tools-event-moklisttrusted.bin": Expected(
        secure_boot=True,
        authorities=(MICROSOFT_UEFI_CA, "40175d4c"),
        images=("", "\\EFI\\redhat\\shimx64.efi", "\\EFI\\redhat\\grubx64.efi", "", ""),
        files=8,
        command_line="(hd0,gpt2)/vmlinuz-5.14.0-130.el9.x86_64 root=UUID=",
        variables={"PK": 1, "KEK": 2, "db": 2, "dbx": 1, "SbatLevel": 1, "MokListTrusted": 1},
    ),
    "tpm2-tools-event-sd-boot-fedora37.bin": Expected(
        secure_boot=False,
        files=1,
        command_line=" console=ttyS0 console=tty0 efi=debug",
        variables={"PK": 0, "KEK": 0, "db": 0, "dbx": 0},
    ),
    "tpm2-tools-event-uefi-sha1-log.bin": Expected(
        secure_boot=False,
        firmware="546bfb1e-1d0c-4055-a4ad-4ef4bf17b83a",
        images=("\\EFI\\ubuntu\\shimx64.efi", ""),
        variables={"PK": 0, "KEK": 1, "db": 2, "dbx": 78},
    ),
    "tpm2-tools-event-uefiaction.bin": FRAGMENT,
    "tpm2-tools-event-uefiservices.bin": Expected(images=("",), doubtful=True),
    # SecureBoot is 1 in it, but no separator ends what the firmware says.
    "tpm2-tools-event-uefivar.bin": FRAGMENT,
    "tpm2-tools-event.bin": FRAGMENT,
    "tpm2-tools-specid-vendordata.bin": Expected(),
    "ubuntu-2104-no-secure-boot.bin": UBUNTU,
    "ubuntu_2104_shielded_vm_no_secure_boot_eventlog.bin": UBUNTU,
}
REFUSED = {"short_no_action_eventlog.bin": "event 0, at byte 0: an EV_NO_ACTION event that is no Spec ID event"}


def assert_expected(found: BootFacts, expected: Expected) -> None:
    assert found.secure_boot is expected.secure_boot
    assert found.firmware_version == expected.firmware
    assert len(found.authorities) == len(expected.authorities)
    for authority, start in zip(found.authorities, expected.authorities, strict=True):
        assert authority.hex().startswith(start)
    assert tuple(image.name for image in found.images) == expected.images
    assert len(found.files) == expected.files
    assert bool(found.command_lines) == bool(expected.command_line)
    assert all(line.startswith(expected.command_line) for line in found.command_lines)
    assert {name: len(found.variables[name]) for name in expected.variables} == expected.variables
    assert {each.pcr for each in found.unproven} - {14} == expected.unproven
    assert bool(found.doubts) is expected.doubtful


@pytest.mark.parametrize("machine", sorted(OWN))
def test_logs_of_our_own(machine: str) -> None:
    """They replay to what the machine's kernel said of its TPM."""
    path = MACHINES / machine / "event_log"
    expected, kernel = OWN[machine]
    log = parse(path.read_bytes())
    assert log.banks == ("sha1", "sha256")
    assert_replays(log, path)
    for bank in log.banks:
        verify(log, registers(machine, bank))
        found = facts(log, bank)
        assert_expected(found, expected)
        assert (bank == "sha1" or not kernel) or found.images[-1].digest.hex().startswith(kernel)


def test_machines_are_told_apart() -> None:
    """Each one's log with the registers of each other: refused, but where the boots were alike up to the kernel."""
    machines = sorted(path.parent.name for path in MACHINES.glob("*/event_log"))
    for machine, other in itertools.permutations(machines, 2):
        log = parse((MACHINES / machine / "event_log").read_bytes())
        if machine.startswith("seabios") and other.startswith("seabios"):
            verify(log, registers(other, "sha256"))
        else:
            with pytest.raises(Refused, match="does not replay"):
                verify(log, registers(other, "sha256"))


def test_no_machine_is_forgotten() -> None:
    assert {str(path.parent.relative_to(MACHINES)) for path in MACHINES.rglob("event_log")} == OWN.keys()


def test_logs_of_others() -> None:
    for path in shared_data("eventlogs"):
        if path.name in REFUSED:
            with pytest.raises(InvalidArgument) as caught:
                parse(path.read_bytes())
            assert REFUSED[path.name] in str(caught.value)
            continue
        log = parse(path.read_bytes())
        if path.name != ORACLE_CRASHES:
            assert_replays(log, path)
        for bank in log.banks:
            verify(log, as_quoted(log, bank))
            assert_expected(facts(log, bank), SHARED[path.name])


def test_a_log_that_ends_before_boot_services_do() -> None:
    """PCR 5 of its machine, as go-attestation's tests have it."""
    for path in shared_data("eventlogs"):
        if path.name == "ebs_event_missing_eventlog.bin":
            log = parse(path.read_bytes())
            quoted = dict(as_quoted(log, "sha1").values)
            quoted[5] = bytes.fromhex("31245808d6d35849bc394f6343f2b3ff908ed5e3")
            verify(log, PcrValues("sha1", quoted))


class Register(msgspec.Struct, rename="pascal"):
    index: int
    digest: str


class Log(msgspec.Struct, rename="pascal"):
    registers: list[Register] = msgspec.field(name="PCRs")
    raw: str


class Attestation(msgspec.Struct, rename="pascal"):
    log: Log


def test_what_a_windows_machine_quoted() -> None:
    for path in shared_data("windows_gcp_shielded_vm.json"):
        attestation = msgspec.json.decode(path.read_bytes(), type=Attestation)
        log = parse(base64.b64decode(attestation.log.raw))
        quoted = {register.index: base64.b64decode(register.digest) for register in attestation.log.registers}
        assert sorted(quoted) == list(range(24))
        verify(log, PcrValues("sha1", quoted))
        found = facts(log, "sha1")
        assert found.secure_boot is True
        assert [image.name for image in found.images] == ["\\EFI\\Microsoft\\Boot\\bootmgfw.efi"]
        assert found.command_lines == ()
