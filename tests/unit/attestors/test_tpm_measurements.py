"""Logs as the kernel shows them, and platform certificates as files."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from attestors.tpm import measurements, platform_files
from attestors.tpm.measurements import Places
from operations import logs
from operations.errors import ConfigurationError, Refused, TemporarilyUnavailable

LOG = logs.get("test")
CERTIFICATE = b"\x30\x03\x02\x01\x01"


def test_a_machine_without_logs_has_none(tmp_path: Path) -> None:
    taken = measurements.take(Places(str(tmp_path / "no" / "event_log"), str(tmp_path / "no" / "ima")), LOG)
    assert (taken.event_log, taken.ima_size) == (b"", 0)
    assert taken.ima(0, 100) == b""


def test_a_file_without_a_size_is_read_to_its_end() -> None:
    """As securityfs has them; /proc is alike, whose files have the size 0 and come in lines."""
    file = Path("/proc/filesystems")
    content = file.read_bytes()
    assert file.stat().st_size == 0
    taken = measurements.take(Places(str(file), str(file)), LOG)
    assert taken.event_log == content
    assert taken.ima_size == len(content) > 20
    assert taken.ima(7, 1000) == content[7:]
    assert taken.ima(3, 10) == content[3:13]


def test_parts_in_sequence_and_out_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurements, "WINDOW", 100)
    content = bytes(range(256)) * 4
    ima = tmp_path / "ima"
    ima.write_bytes(content)
    taken = measurements.take(Places("", str(ima)), LOG)
    ima.write_bytes(content + b"grown")
    assert b"".join(taken.ima(at, 30) for at in range(0, 1024, 30)) == content
    for at, size in ((500, 300), (0, 10), (1000, 500), (5, 99), (90, 20)):
        assert taken.ima(at, size) == content[at : at + size]
    ima.unlink()
    with pytest.raises(TemporarilyUnavailable, match="cannot be read"):
        taken.ima(400, 10)


def test_logs_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurements, "EVENT_LOG_LIMIT", 1000)
    monkeypatch.setattr(measurements, "IMA_LIMIT", 1000)
    log = tmp_path / "log"
    log.write_bytes(bytes(1001))
    with pytest.raises(Refused, match="more than firmware writes"):
        measurements.take(Places(str(log), ""), LOG)
    assert measurements.take(Places("", "/dev/zero"), LOG).ima_size > 1000


def test_a_folder_in_the_place_of_a_log(tmp_path: Path) -> None:
    with pytest.raises(TemporarilyUnavailable, match="cannot be read"):
        measurements.take(Places(str(tmp_path), ""), LOG)
    with pytest.raises(TemporarilyUnavailable, match="cannot be read"):
        measurements.take(Places("", str(tmp_path)), LOG)


def test_a_path_that_is_given_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="ima_path: there is no"):
        Places("", str(tmp_path / "ima")).check()


def test_platform_certificates_in_files_and_folders(tmp_path: Path) -> None:
    assert platform_files.read("") == ()
    (tmp_path / "a.der").write_bytes(CERTIFICATE)
    text = base64.encodebytes(CERTIFICATE).decode()
    armoured = f"-----BEGIN ATTRIBUTE CERTIFICATE-----\n{text}-----END ATTRIBUTE CERTIFICATE-----\n"
    (tmp_path / "b.pem").write_text(armoured * 2)
    assert platform_files.read(str(tmp_path)) == (CERTIFICATE,) * 3
    assert platform_files.read(str(tmp_path / "a.der")) == (CERTIFICATE,)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "is no certificate"),
        (b"text", "is no certificate"),
        (b"-----BEGIN CERTIFICATE-----\n@@@\n-----END CERTIFICATE-----\n", "damaged PEM"),
        (bytes(1 << 18), "larger than 128 KiB"),
    ],
    ids=["empty", "text", "base64", "large"],
)
def test_platform_certificates_that_are_none(tmp_path: Path, content: bytes, line: str) -> None:
    file = tmp_path / "certificate"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=line):
        platform_files.read(str(file))


def test_a_folder_without_platform_certificates_or_with_too_many(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="has 0 certificates"):
        platform_files.read(str(tmp_path))
    for number in range(platform_files.LIMIT + 1):
        (tmp_path / f"{number}.der").write_bytes(CERTIFICATE)
    with pytest.raises(ConfigurationError, match="has 9 certificates"):
        platform_files.read(str(tmp_path))
    for number in range(4):
        (tmp_path / f"{number}.der").write_bytes(CERTIFICATE + bytes(100 << 10))
    with pytest.raises(ConfigurationError, match="more than 128 KiB"):
        platform_files.read(str(tmp_path))
    with pytest.raises(ConfigurationError, match="No such file"):
        platform_files.read(str(tmp_path / "nothing"))
