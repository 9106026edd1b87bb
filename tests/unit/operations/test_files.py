import os
import socket
import stat
from pathlib import Path

import pytest

from operations import files, sdnotify
from operations.errors import ConfigurationError


def test_writes_and_replaces_with_the_mode(tmp_path: Path) -> None:
    path = tmp_path / "state"
    files.write_atomically(path, b"one", mode=0o644)
    files.write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_content_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state"
    files.write_atomically(path, b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def _secret(tmp_path: Path, data: bytes, mode: int = 0o600) -> Path:
    path = tmp_path / "pin"
    path.write_bytes(data)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("data", [b"1234", b"1234\n", b"1234\r\n"])
def test_reads_a_secret_without_its_newline(tmp_path: Path, data: bytes) -> None:
    assert files.read_secret(_secret(tmp_path, data)) == "1234"


@pytest.mark.parametrize(
    ("data", "mode", "reason"),
    [
        (b"1234", 0o640, "mode 0640"),
        (b"1234", 0o604, "mode 0604"),
        (b"", 0o600, "is empty"),
        (b"\n", 0o600, "is empty"),
        (b"\xff", 0o600, "not UTF-8"),
        (b"x" * (2 << 20), 0o600, "larger than"),
    ],
)
def test_refuses_unsafe_secrets(tmp_path: Path, data: bytes, mode: int, reason: str) -> None:
    path = _secret(tmp_path, data, mode)
    with pytest.raises(ConfigurationError, match=reason) as error:
        files.read_secret(path, "PIN")
    assert str(error.value).startswith(f"{path}: the PIN ")


def test_missing_secrets_and_directories_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        files.read_secret(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(ConfigurationError, match="regular file"):
        files.read_secret(tmp_path / "pipe")


def test_tells_the_supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(tmp_path / "notify"))
        supervisor.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        assert sdnotify.notify("READY=1")
        assert supervisor.recv(100) == b"READY=1"
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert not sdnotify.notify("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert not sdnotify.notify("READY=1")
