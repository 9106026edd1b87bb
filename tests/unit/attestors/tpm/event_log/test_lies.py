"""Logs that replay, and say what was not booted.

Whoever owns a machine after its boot can extend registers further, and write a log anew: types, names and data are
theirs, the order and the digests of each register are not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest

from attestors.tpm.event_log.facts import facts
from attestors.tpm.event_log.model import BootFacts, Measured
from attestors.tpm.event_log.parser import parse
from attestors.tpm.event_log.replay import verify
from tests.simulators.event_log import (
    ACTION,
    APPLICATION,
    EVENT_TAG,
    IMAGE_SECURITY,
    IPL,
    S_CRTM_VERSION,
    SEPARATOR,
    SHIM,
    VARIABLE_AUTHORITY,
    VARIABLE_BOOT,
    VARIABLE_DRIVER_CONFIG,
    X509,
    Boot,
    EventLogBuilder,
    booted,
    certificate,
    signature_list,
    variable_data,
)

OFF = variable_data("SecureBoot", b"\0")
ON = variable_data("SecureBoot", b"\1")
PK = variable_data("PK", signature_list(X509, [certificate("PK")]))
EVIL = "/boot/vmlinuz init=/bin/sh"


def told(builder: EventLogBuilder) -> BootFacts:
    log = parse(builder.build())
    verify(log, builder.pcrs())
    return facts(log, "sha256")


def log() -> EventLogBuilder:
    return EventLogBuilder(("sha256",))


def config(builder: EventLogBuilder, data: bytes, hashed: bytes | None = None) -> EventLogBuilder:
    return builder.extend(7, VARIABLE_DRIVER_CONFIG, data, hashed)


@pytest.mark.parametrize(
    "lie",
    [
        pytest.param(lambda: config(log(), ON, OFF).separators(7), id="other data than were hashed"),
        pytest.param(lambda: config(log(), OFF).separators(7).extend(7, VARIABLE_DRIVER_CONFIG, ON), id="told later"),
        pytest.param(
            lambda: config(config(log(), OFF).separators(7), ON).separators(7), id="told later, before a separator anew"
        ),
        pytest.param(lambda: config(config(log(), OFF), ON).separators(7), id="told twice"),
        pytest.param(lambda: config(config(config(log(), ON), PK), ON).separators(7), id="told twice alike"),
        pytest.param(lambda: config(config(log(), ON), PK), id="no separator"),
        pytest.param(
            lambda: config(config(log().extend(7, VARIABLE_BOOT, b"boot order", OFF), ON), PK).separators(7),
            id="the other one passed off as another event",
        ),
        pytest.param(
            lambda: config(
                config(log().extend(7, SEPARATOR, bytes(4), OFF).extend(7, IPL, b"?", bytes(4)), ON), PK
            ).separators(7),
            id="the separator passed off as another event",
        ),
        pytest.param(
            lambda: config(config(config(log(), OFF).extend(7, IPL, b"nothing", bytes(4)), ON), PK).separators(7),
            id="the separator hidden, and all told anew",
        ),
        pytest.param(
            lambda: config(config(log(), ON), PK).separators(7).extend(7, VARIABLE_AUTHORITY, OFF),
            id="contradicted as an authority",
        ),
        pytest.param(
            lambda: config(config(log().extend(7, VARIABLE_AUTHORITY, OFF), ON), PK).separators(7),
            id="contradicted as a driver's authority",
        ),
        pytest.param(lambda: config(config(log(), ON), PK).separators(7, value=b"\1\0\0\0"), id="an error separator"),
        pytest.param(lambda: config(config(log(), ON), PK).separators(7, 7), id="two separators"),
        pytest.param(lambda: config(log(), ON).separators(7), id="no platform key"),
        pytest.param(
            lambda: config(config(log(), ON), variable_data("PK", b"")).separators(7), id="an empty platform key"
        ),
        pytest.param(
            lambda: config(config(log(), variable_data("SecureBoot", b"\2")), PK).separators(7), id="neither 0 nor 1"
        ),
        pytest.param(
            lambda: config(config(log(), variable_data("SecureBoot", b"\1\0")), PK).separators(7), id="two bytes"
        ),
        pytest.param(
            lambda: config(config(log(), ON), PK).extend(7, ACTION, b"UEFI Debug Mode").separators(7), id="a debugger"
        ),
        pytest.param(
            lambda: config(config(log(), variable_data("SecureBoot", b"\1", IMAGE_SECURITY)), PK).separators(7),
            id="in another namespace",
        ),
        pytest.param(
            lambda: config(config(log(), ON[:-2] + b"T\0\1"), PK).separators(7),
            id="malformed",
        ),
        pytest.param(lambda: log().no_action(ON).extend(7, 1, PK).separators(7), id="never extended"),
        pytest.param(
            lambda: log().extend(6, VARIABLE_DRIVER_CONFIG, ON).extend(6, VARIABLE_DRIVER_CONFIG, PK).separators(6, 7),
            id="in another register",
        ),
    ],
)
def test_secure_boot_is_not_proven(lie: Callable[[], EventLogBuilder]) -> None:
    assert told(lie()).secure_boot is not True


def test_the_truth_for_comparison() -> None:
    assert told(config(config(log(), ON), PK).separators(7)).secure_boot is True


def test_keys_that_are_told_twice_or_not_proven_are_none() -> None:
    db = variable_data("db", signature_list(X509, [certificate("one")]), IMAGE_SECURITY)
    other = variable_data("db", signature_list(X509, [certificate("two")]), IMAGE_SECURITY)
    assert "db" not in told(config(config(config(log(), ON), db), other).separators(7)).variables
    assert "db" not in told(config(config(log(), ON), db, other).separators(7)).variables
    assert "db" not in told(config(config(log(), ON).separators(7), db)).variables
    assert told(config(config(log(), ON), PK).separators(7)).variables.keys() == {"PK"}


def test_keys_that_are_told_after_the_separator_verified_something() -> None:
    """They are no variables then, and an authority that nobody has allowed."""
    found = told(config(config(log(), ON), PK).separators(7).variable("db", b"later", IMAGE_SECURITY))
    assert found.authorities == (hashlib.sha256(b"later").digest(),)


def test_an_authority_that_is_not_proven_is_told() -> None:
    builder = config(config(log(), ON), PK).separators(7)
    data = variable_data("db", certificate("good"), IMAGE_SECURITY)
    found = told(builder.extend(7, VARIABLE_AUTHORITY, data, b"another"))
    assert found.authorities == ()
    assert found.unproven == (Measured(7, hashlib.sha256(b"another").digest()),)


@pytest.mark.parametrize("kind", [1, 3, 4, 5, 6, 8, 0xD, 0x80000001, ACTION, APPLICATION, 0xDEADBEEF])
@pytest.mark.parametrize("data", [b"", b"Calling EFI Application from Boot Option", bytes(4), b"WBCL"])
def test_an_image_is_one_whatever_it_is_called(kind: int, data: bytes) -> None:
    """But with type EV_NO_ACTION it would not have been extended, and the log not replay."""
    builder = booted()
    if kind == 3:
        builder.no_action(data, pcr=4)
    else:
        builder.extend(4, kind, data, b"rootkit")
    digests = [image.digest for image in told(builder).images]
    assert (hashlib.sha256(b"rootkit").digest() in digests) is (kind != 3)


def test_an_image_is_no_text_even_with_its_own_bytes_in_the_log() -> None:
    image = b"MZ" + bytes(70) + b"PE\0\0" + b"code" * 200
    found = told(log().extend(4, ACTION, image).extend(4, ACTION, b"x" * 129))
    assert [one.digest for one in found.images] == [hashlib.sha256(one).digest() for one in (image, b"x" * 129)]


@pytest.mark.parametrize("kind", [1, 5, EVENT_TAG, IPL, ACTION])
def test_a_file_is_one_whatever_it_is_called(kind: int) -> None:
    assert hashlib.sha256(b"evil").digest() in [one.digest for one in told(log().extend(9, kind, b"", b"evil")).files]


@pytest.mark.parametrize("label", [b"grub_cmd: ", b"grub_cmd ", b"module_cmdline: ", b"x: ", b""])
@pytest.mark.parametrize("kind", [1, EVENT_TAG, IPL, ACTION, SEPARATOR])
def test_a_command_line_is_one_whatever_it_is_called(label: bytes, kind: int) -> None:
    builder = log().extend(8, kind, label + EVIL.encode() + b"\0", EVIL.encode() + (b"" if label else b"\0"))
    assert told(builder).command_lines == (EVIL,)


@pytest.mark.parametrize("name", ["(http,192.0.2.1)/vmlinuz", "0+20000", "+20000", "/vmlinuz"])
def test_a_kernel_by_any_name(name: str) -> None:
    builder = log().extend(8, IPL, f"grub_cmd: {name} init=/bin/sh\0".encode(), f"{name} init=/bin/sh".encode())
    assert told(builder).command_lines == (f"{name} init=/bin/sh",)


def test_a_kernel_whose_name_is_like_a_command() -> None:
    """`linux` was called, and no command line came of it: it is among the commands."""
    builder = log().grub_command("linux set init=/bin/sh").grub_command("set init=/bin/sh")
    found = told(builder)
    assert found.command_lines == ()
    assert found.unproven == (Measured(8, hashlib.sha256(b"linux set init=/bin/sh").digest()),)
    builder.grub_command("linux /vmlinuz").grub_command_line("/vmlinuz")
    found = told(builder)
    assert found.command_lines == ("/vmlinuz",)
    assert len(found.unproven) == 1


def test_a_command_line_that_no_kernel_takes_whole_is_not_proven() -> None:
    line = "/vmlinuz " + "x" * (32 << 10)
    found = told(log().grub_command_line(line))
    assert (found.command_lines, len(found.unproven)) == ((), 1)


def test_a_command_line_in_the_shape_of_windows_settings() -> None:
    """A size that spells a letter and a space takes more than 2 MiB, of which the kernel reads the first 4 KiB."""
    line = "aax init=/bin/sh".encode("utf-16-le")
    data = line.ljust(8 + int.from_bytes(line[4:8], "little"), b" ")
    assert len(data) == 8 + int.from_bytes(data[4:8], "little")
    found = told(log().extend(12, EVENT_TAG, data))
    assert (found.command_lines, len(found.unproven)) == ((), 1)


def test_a_script_is_no_option_of_the_kernel() -> None:
    """Its bytes in pairs are letters of a far script, which a command after the boot spells out."""
    script = b"linux /evil init=/bin/sh"
    builder = log().grub_file("/grub.cfg", script)
    builder.grub_command(f"echo x {script.decode('utf-16-le')}").grub_command_line(script.decode("utf-16-le"))
    assert [file.digest for file in told(builder).files] == [hashlib.sha256(script).digest()]


def test_shims_generation_is_told_once() -> None:
    old, new = (variable_data("SbatLevel", b"sbat,1,%d\n" % year, SHIM) for year in (2021, 2025))
    start = config(config(log(), ON), PK).separators(7)
    assert "SbatLevel" in told(start.extend(7, VARIABLE_AUTHORITY, old)).variables
    assert "SbatLevel" not in told(start.extend(7, VARIABLE_AUTHORITY, new)).variables
    hidden = config(config(log(), ON), PK).separators(7).extend(7, VARIABLE_AUTHORITY, b"", old)
    assert "SbatLevel" not in told(hidden.extend(7, VARIABLE_AUTHORITY, new)).variables


@pytest.mark.parametrize("pcr", [8, 12])
@pytest.mark.parametrize("data", [b"", b"grub_cmd: echo\0", b"kernel_cmdline: /good\0", "good\0".encode("utf-16-le")])
def test_a_command_line_that_is_not_proven_is_told(pcr: int, data: bytes) -> None:
    found = told(log().extend(pcr, IPL, data, b"/vmlinuz evil"))
    assert found.command_lines == ()
    assert found.unproven == (Measured(pcr, hashlib.sha256(b"/vmlinuz evil").digest()),)


def test_the_owners_keys_do_not_change_names() -> None:
    """MokList holds what an attacker enrolled; the good list is extended after the boot, and the names are mended."""
    builder = log().extend(14, IPL, b"MokSBState\0", b"evil").extend(14, IPL, b"MokListX\0", b"")
    builder.extend(14, IPL, b"MokList\0", b"good")
    found = told(builder)
    assert found.variables == {}
    assert [each.pcr for each in found.unproven] == [14, 14, 14]


@pytest.mark.parametrize("names", [("MokList", "MokList"), ("MokListX", "MokList"), ("MokList", "Other"), ("",)])
def test_the_owners_keys_are_in_shims_order(names: tuple[str, ...]) -> None:
    builder = log()
    for name in names:
        builder.extend(14, IPL, name.encode() + b"\0", b"list")
    assert told(builder).variables == {}


def test_a_firmware_version_is_the_one_before_the_separator() -> None:
    good, evil = "good\0".encode("utf-16-le"), "evil\0".encode("utf-16-le")
    late = log().extend(0, 1, evil).separators(0).extend(0, S_CRTM_VERSION, good)
    hidden = log().extend(0, 1, evil).extend(0, 1, b"", bytes(4)).extend(0, S_CRTM_VERSION, good).separators(0)
    twice = log().extend(0, S_CRTM_VERSION, evil).extend(0, S_CRTM_VERSION, good).separators(0)
    other = log().extend(0, S_CRTM_VERSION, good, evil).separators(0)
    open_end = log().extend(0, S_CRTM_VERSION, good)
    assert [told(each).firmware_version for each in (late, hidden, twice, other, open_end)] == [None] * 5


def test_a_boot_with_secure_boot_off_is_not_made_one_with_it_on() -> None:
    """All of an honest log, and after it all of another: each register's first separator ends what is believed."""
    builder = booted(Boot(secure_boot=False, firmware="old"))
    other = booted(Boot(secure_boot=True, firmware="new"))
    for event in parse(other.build()).events[1:]:
        builder.extend(event.pcr, event.type, event.data, digests=event.digests)
    found = told(builder)
    assert found.secure_boot is None
    assert found.firmware_version == "old"
    assert "PCR 7: 2 separators: there is but one in a boot" in found.doubts
