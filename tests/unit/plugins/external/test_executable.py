from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from operations.errors import ConfigurationError, PermanentlyUnusable, Refused
from plugins.external.executable import Executable, Verified

SCRIPT = b"#!/bin/sh\necho first\n"
SUM = hashlib.sha256(SCRIPT).hexdigest()


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "plugin"
    path.write_bytes(SCRIPT)
    path.chmod(0o755)
    return path


def rewrite(script: Path) -> None:
    """Other bytes in the same file, and the old time of change as far as that can be set."""
    before = script.stat()
    script.write_bytes(SCRIPT.replace(b"first", b"worse"))
    os.utime(script, ns=(before.st_atime_ns, before.st_mtime_ns))


def output(verified: Verified) -> str:
    done = subprocess.run([verified.path], pass_fds=verified.descriptors, capture_output=True, text=True, check=True)
    return done.stdout


async def test_without_a_checksum_the_path_is_executed(script: Path) -> None:
    async with Executable.of(str(script), None).verified() as verified:
        assert verified == Verified(str(script))


async def test_a_relative_path_is_below_the_working_directory(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(script.parent)
    assert Executable.of("plugin", None).path == str(script)


async def test_the_file_that_was_checked_is_executed_whatever_takes_its_place(script: Path) -> None:
    async with Executable.of(str(script), SUM.upper()).verified() as verified:
        other = script.with_name("other")
        other.write_bytes(b"#!/bin/sh\necho second\n")
        other.chmod(0o755)
        other.replace(script)
        assert output(verified) == "first\n"


async def test_a_file_written_to_meanwhile_is_refused(script: Path) -> None:
    verifying = Executable.of(str(script), SUM).verified()
    await verifying.__aenter__()
    rewrite(script)
    with pytest.raises(Refused, match="checksums did not match"):
        await verifying.__aexit__(None, None, None)


async def test_another_file_is_refused(script: Path) -> None:
    wanted = hashlib.sha256(b"").hexdigest()
    with pytest.raises(Refused, match=f"checksums did not match: {script} has {SUM}; check plugin_checksum"):
        async with Executable.of(str(script), wanted).verified():
            pass


@pytest.mark.parametrize(
    ("checksum", "fault"),
    [
        ("zz", "checksum is not a valid hex string"),
        ("abc", "checksum is not a valid hex string"),
        ("00", "expected checksum of length 64; got 2"),
        ("00" * 64, "expected checksum of length 64; got 128"),
    ],
)
def test_no_checksum(checksum: str, fault: str) -> None:
    with pytest.raises(ConfigurationError, match=fault):
        Executable.of("/bin/true", checksum)


def test_what_cannot_be_executed(tmp_path: Path, script: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such file or directory"):
        Executable.of(str(tmp_path / "none"), None).check()
    with pytest.raises(ConfigurationError, match="no executable file"):
        Executable.of(str(tmp_path), None).check()
    script.chmod(0o644)
    with pytest.raises(ConfigurationError, match="no executable file"):
        Executable.of(str(script), None).check()


async def test_a_file_that_is_gone_by_then(script: Path) -> None:
    executable = Executable.of(str(script.with_name("none")), SUM)
    with pytest.raises(PermanentlyUnusable, match=r"error verifying checksum: cannot read .*/none: no such file"):
        await executable.verified().__aenter__()
