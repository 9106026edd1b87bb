"""What a log proves to have been booted, from ordinary boots."""

from __future__ import annotations

import hashlib
import struct

import pytest

from attestors.tpm.event_log.facts import facts
from attestors.tpm.event_log.model import BootFacts, Measured
from attestors.tpm.event_log.parser import parse
from attestors.tpm.event_log.replay import verify
from operations.errors import Refused
from tests.simulators.event_log import (
    ACTION,
    DRIVER,
    EVENT_TAG,
    GLOBAL,
    IMAGE_SECURITY,
    IPL,
    OWNER,
    S_CRTM_VERSION,
    SEPARATOR,
    SHA256,
    SHIM,
    VARIABLE_AUTHORITY,
    X509,
    X509_SHA256,
    Boot,
    EventLogBuilder,
    booted,
    certificate,
    signature_list,
    variable_data,
)

COMMAND_LINE = "/boot/vmlinuz root=/dev/vda1 ro quiet"


def told(builder: EventLogBuilder, bank: str = "sha256") -> BootFacts:
    """The facts, as a server reads them: of a log that replays."""
    log = parse(builder.build())
    verify(log, builder.pcrs(bank))
    return facts(log, bank)


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def firmware(*, secure_boot: bytes = b"\1", separators: int = 1) -> EventLogBuilder:
    """PCR 7 up to its separator."""
    log = EventLogBuilder(("sha256",)).variable("SecureBoot", secure_boot)
    log.variable("PK", signature_list(X509, [certificate("PK")]))
    return log.separators(*[7] * separators)


def test_a_boot() -> None:
    found = told(booted())
    assert found.bank == "sha256"
    assert found.secure_boot is True
    assert found.firmware_version == "Bench 1.0"
    assert found.variables == {
        "PK": (sha256(certificate("PK")),),
        "KEK": (sha256(certificate("KEK")),),
        "db": (sha256(certificate("vendor CA")),),
        "dbx": (sha256(b"revoked"),),
        "SbatLevel": (sha256(b"sbat,1,2022052400\n"),),
        "MokList": (sha256(b""),),
        "MokListX": (sha256(b""),),
    }
    assert found.authorities == (sha256(certificate("vendor CA")),)
    assert found.images == (
        Measured(4, sha256(b"shim"), "\\EFI\\debian\\shimx64.efi"),
        Measured(4, sha256(b"grub"), "\\EFI\\debian\\grubx64.efi"),
        Measured(4, sha256(b"kernel")),
    )
    assert found.files == (
        Measured(9, sha256(b"grub.cfg"), "(hd0,gpt1)/boot/grub/grub.cfg"),
        Measured(9, sha256(b"kernel"), "/boot/vmlinuz"),
        Measured(9, sha256(b"initrd"), "/boot/initrd.img"),
    )
    assert found.command_lines == (COMMAND_LINE,)
    assert (found.unproven, found.doubts) == ((), ())


def test_a_boot_in_another_bank() -> None:
    found = told(booted(), "sha1")
    assert found.images[0].digest == hashlib.sha1(b"shim", usedforsecurity=False).digest()
    assert found.authorities == (sha256(certificate("vendor CA")),)
    assert found.command_lines == (COMMAND_LINE,)


def test_a_bank_that_the_log_has_not() -> None:
    with pytest.raises(Refused, match="no digests of the sha512 bank"):
        facts(parse(booted().build()), "sha512")


def test_a_log_without_events_says_nothing() -> None:
    assert told(EventLogBuilder()) == BootFacts(bank="sha256")


def test_secure_boot_is_off() -> None:
    assert told(booted(Boot(secure_boot=False))).secure_boot is False
    assert told(firmware(secure_boot=b"")).secure_boot is False  # as EDK II measures a variable that is not there


def test_a_bios_has_no_secure_boot() -> None:
    """SeaBIOS: separators of ones, texts, option ROMs as tagged events."""
    builder = EventLogBuilder(("sha256",)).extend(2, 5, b"Start Option ROM Scan")
    builder.extend(2, EVENT_TAG, struct.pack("<II", 7, 24) + b"r" * 24).separators(*range(8), value=b"\xff" * 4)
    found = told(builder)
    assert found.secure_boot is None
    assert [image.pcr for image in found.images] == [2]
    assert found.doubts == ()


@pytest.mark.parametrize(
    ("data", "version"),
    [
        (b"", None),
        (b"\0\0", None),
        ("Süd".encode("utf-16-le"), "5300fc006400"),
        (b"BIOS 1.2\0", "BIOS 1.2"),
        (bytes.fromhex("1efb6b540c1d5540a4ad4ef4bf17b83a"), "546bfb1e-1d0c-4055-a4ad-4ef4bf17b83a"),
        (b"M60" + bytes(33) + b"\2", hashlib.sha256(b"M60" + bytes(33) + b"\2").hexdigest()),
    ],
    ids=["nothing", "empty", "other letters", "ascii", "guid", "a vendor's structure"],
)
def test_firmware_versions(data: bytes, version: str | None) -> None:
    assert told(EventLogBuilder().extend(0, S_CRTM_VERSION, data).separators(0)).firmware_version == version


def test_signature_lists() -> None:
    two = [certificate("one"), certificate("two")]
    kinds = b"".join(
        (
            signature_list(X509, two),
            signature_list(SHA256, [sha256(b"a"), sha256(b"b")], header=b"header"),
            signature_list(X509_SHA256, [sha256(b"c") + bytes(16)]),
            signature_list(GLOBAL, [b"of a kind that is not known"]),
        )
    )
    builder = EventLogBuilder().variable("SecureBoot", b"\0").variable("db", kinds, IMAGE_SECURITY).separators(7)
    assert told(builder).variables["db"] == (
        *map(sha256, two),
        sha256(b"a"),
        sha256(b"b"),
        sha256(b"c"),
        sha256(b"of a kind that is not known"),
    )


ONE = signature_list(X509, [certificate("one")])


@pytest.mark.parametrize("data", [ONE[:-1], ONE + b"x", ONE[:16] + b"\xff" * 4 + ONE[20:]], ids=["cut", "more", "size"])
def test_a_variable_that_is_no_signature_list_is_not_told_of(data: bytes) -> None:
    found = told(EventLogBuilder().variable("SecureBoot", b"\0").variable("db", data, IMAGE_SECURITY).separators(7))
    assert "db" not in found.variables
    assert found.doubts == ("PCR 7: db is told 1 times, or is no list of signatures",)


def test_variables_of_other_namespaces_are_not_the_firmwares() -> None:
    builder = EventLogBuilder().variable("SecureBoot", b"\1", IMAGE_SECURITY)
    builder.variable("db", signature_list(X509, [certificate("one")]), GLOBAL).separators(7)
    found = told(builder)
    assert (found.secure_boot, dict(found.variables)) == (None, {})


@pytest.mark.parametrize(
    ("data", "identity"),
    [
        (OWNER.bytes_le + certificate("CA"), sha256(certificate("CA"))),
        (certificate("CA"), sha256(certificate("CA"))),
        (OWNER.bytes_le + sha256(b"image"), sha256(b"image")),
        (b"neither", sha256(b"neither")),
    ],
    ids=["of db", "of shim, without an owner", "of a hash in db", "of what is not known"],
)
def test_authorities(data: bytes, identity: bytes) -> None:
    builder = firmware().extend(7, VARIABLE_AUTHORITY, variable_data("db", data, IMAGE_SECURITY))
    assert told(builder).authorities == (identity,)


def test_authorities_of_drivers_come_before_the_separator() -> None:
    builder = EventLogBuilder().variable("SecureBoot", b"\1").variable("PK", signature_list(X509, [certificate("PK")]))
    found = told(builder.authority(certificate("driver CA")).separators(7).authority(certificate("vendor CA")))
    assert found.secure_boot is True
    assert found.authorities == (sha256(certificate("driver CA")), sha256(certificate("vendor CA")))


def test_shim_logged_a_byte_more_than_it_hashed() -> None:
    """Shim before 15.3, with the padding of a structure besides; rhboot/shim 8a27a4809a."""
    hashed = variable_data("Shim", certificate("vendor CA"), SHIM) + bytes(5)
    found = told(firmware().extend(7, VARIABLE_AUTHORITY, hashed + b"\xaf", hashed))
    assert found.authorities == (sha256(certificate("vendor CA")),)
    assert found.unproven == ()


def test_what_shim_tells_of_itself_is_no_authority() -> None:
    builder = firmware().extend(7, VARIABLE_AUTHORITY, variable_data("SbatLevel", b"sbat,1,1\n", SHIM))
    builder.extend(7, VARIABLE_AUTHORITY, variable_data("MokListTrusted", b"\1", SHIM))
    found = told(builder)
    assert found.authorities == ()
    assert found.variables["SbatLevel"] == (sha256(b"sbat,1,1\n"),)


def test_the_owners_variables() -> None:
    builder = EventLogBuilder()
    for name, data in (("MokList", b"list"), ("MokListX", b""), ("MokSBState", b"\1"), ("MokListTrusted", b"\1")):
        builder.extend(14, IPL, name.encode() + b"\0", data)
    assert told(builder).variables == {
        "MokList": (sha256(b"list"),),
        "MokListX": (sha256(b""),),
        "MokSBState": (sha256(b"\1"),),
        "MokListTrusted": (sha256(b"\1"),),
    }


def test_drivers_and_their_names() -> None:
    file = b"\x04\x06\x14\0" + GLOBAL.bytes_le + b"\x7f\xff\x04\0"
    load = struct.pack("<QQQQ", 0, 0, 0, len(file)) + file
    builder = EventLogBuilder().extend(2, DRIVER, load, b"driver").image("\\EFI\\x.efi", b"image", kind=EVENT_TAG)
    assert told(builder).images == (
        Measured(2, sha256(b"driver"), str(GLOBAL)),
        Measured(4, sha256(b"image"), ""),
    )


@pytest.mark.parametrize(
    ("data", "hashed", "line"),
    [
        (b"kernel_cmdline: /vmlinuz ro\0", b"/vmlinuz ro", "/vmlinuz ro"),
        (b"kernel_cmdline: /vmlinuz ro\0", b"/vmlinuz ro\0", "/vmlinuz ro"),
        (b"kernel_cmdline: /vmlinuz ro", b"/vmlinuz ro", "/vmlinuz ro"),
        (b"grub_kernel_cmdline (hd0,gpt2)/vmlinuz ro\0", b"(hd0,gpt2)/vmlinuz ro", "(hd0,gpt2)/vmlinuz ro"),
        (b"module_cmdline: /xen a: b\0", b"/xen a: b", "/xen a: b"),
        (b"kernel_cmdline: \0", b"", ""),
        ("quiet splash\0".encode("utf-16-le"), None, "quiet splash"),
        ("quiet splash\0".encode("utf-16-le")[:-1], "quiet splash\0".encode("utf-16-le"), "quiet splash"),
        ("prénom=ü\0".encode("utf-16-le"), None, "prénom=ü"),
        (b"root=/dev/sda1", None, "root=/dev/sda1"),
        (b"kernel_cmdline: /vmlinuz \x1b[2J\xff\0", b"/vmlinuz \x1b[2J\xff", "/vmlinuz \\x1b[2J\\xff"),
    ],
    ids=[
        "GRUB",
        "with NUL",
        "without NUL at all",
        "Red Hat's",
        "module",
        "empty",
        "stub",
        "old stub",
        "umlauts",
        "ASCII",
        "control",
    ],
)
@pytest.mark.parametrize("pcr", [8, 12])
def test_command_lines(data: bytes, hashed: bytes | None, line: str, pcr: int) -> None:
    found = told(EventLogBuilder(("sha256",)).extend(pcr, IPL, data, hashed))
    assert found.command_lines == (line,)
    assert found.unproven == ()


def test_commands_of_grub_are_no_command_lines() -> None:
    builder = EventLogBuilder().grub_command("set root=hd0,gpt1").grub_command("[ -f /x ]").grub_command("initrd /i")
    builder.extend(8, IPL, b"grub_cmd set pager=1\0", b"set pager=1\0")
    found = told(builder)
    assert (found.command_lines, found.unproven) == ((), ())


def test_what_windows_has_in_the_loaders_registers() -> None:
    builder = EventLogBuilder()
    for pcr in (12, 13, 14):
        builder.extend(pcr, EVENT_TAG, struct.pack("<II", 0x40010001, 12) + b"configuration"[:12])
        builder.extend(pcr, SEPARATOR, b"WBCL")
    found = told(builder)
    assert found.command_lines == ()
    assert {each.pcr for each in found.unproven} == {14}


def test_what_the_kernels_stub_reads() -> None:
    builder = EventLogBuilder().extend(9, EVENT_TAG, struct.pack("<II", 0x8F3B22EC, 13) + b"Linux initrd\0", b"initrd")
    assert told(builder).files == (Measured(9, sha256(b"initrd"), "Linux initrd"),)


def stub_options(builder: EventLogBuilder, text: str, end: str = "\0") -> EventLogBuilder:
    """What the kernel's stub measures: the digest of its options, and nothing in the log but a tag."""
    label = b"LOADED_IMAGE::LoadOptions\0"
    data = struct.pack("<II", 0x8F3B22ED, len(label)) + label
    return builder.extend(9, EVENT_TAG, data, f"{text}{end}".encode("utf-16-le"))


def test_options_that_a_command_gave_are_a_command_line() -> None:
    found = told(stub_options(EventLogBuilder().grub_command("chainloader /vmlinuz initrd=\\i ro"), "initrd=\\i ro"))
    assert found.command_lines == ("initrd=\\i ro",)
    assert (found.files, found.unproven) == ((), ())


def test_options_that_a_line_tells_are_told_once() -> None:
    """GRUB 2.12 starts kernels through their stub; systemd-boot always has."""
    for builder in (
        stub_options(EventLogBuilder().grub_command_line("/vmlinuz ro"), "BOOT_IMAGE=/vmlinuz ro", end=""),
        stub_options(EventLogBuilder().stub_command_line("ro quiet"), "ro quiet"),
    ):
        found = told(builder)
        assert len(found.command_lines) == 1
        assert (found.files, found.unproven) == ((), ())


def test_options_that_nothing_tells_are_not_proven() -> None:
    found = told(stub_options(EventLogBuilder().stub_command_line("ro quiet"), "init=/bin/sh"))
    assert found.command_lines == ("ro quiet",)
    digest = sha256("init=/bin/sh\0".encode("utf-16-le"))
    assert found.unproven == (Measured(9, digest),)
    assert found.files == (Measured(9, digest, "LOADED_IMAGE::LoadOptions"),)


@pytest.mark.parametrize("name", [b"\x1b]0;title\x07/x\0", b"a\nb", b"\xff\xfe"])
def test_names_move_no_cursor(name: bytes) -> None:
    (file,) = told(EventLogBuilder().extend(9, IPL, name, b"content")).files
    assert file.name.isprintable()


def test_names_are_no_longer_than_names_are() -> None:
    found = told(EventLogBuilder().extend(9, IPL, b"n" * 5000, b"content").image("p" * 5000, b"image"))
    assert {len(found.files[0].name), len(found.images[0].name)} == {512}


def test_separators_that_are_not_as_they_should_be_are_told() -> None:
    builder = EventLogBuilder().extend(0, ACTION, b"x").separators(1, 1).separators(2, value=b"\1\0\0\0")
    assert told(builder).doubts == (
        "PCR 0: no separator: nothing tells what the firmware measured from what came later",
        "PCR 1: 2 separators: there is but one in a boot",
        "PCR 2: an error separator: the firmware could not measure all",
    )
