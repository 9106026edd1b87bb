"""The server as a process: what it tells systemd, who may reach its socket, and how it ends."""

from __future__ import annotations

import os
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulators.spire import Program, Server, eventually


@pytest.fixture
def notices(tmp_path: Path) -> Iterator[socket.socket]:
    """systemd's end of the notification socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(60)
        yield receiver


@pytest.fixture
def server(tmp_path: Path, notices: socket.socket) -> Iterator[Server]:
    made = Server(tmp_path / "new" / "server", environment={"NOTIFY_SOCKET": notices.getsockname()})
    yield made
    if made.run.process is not None:
        made.run.end()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_server_tells_when_it_is_ready_and_ends_in_peace(server: Server, notices: socket.socket, number: int) -> None:
    server.run.start()
    assert notices.recv(500).split(b"\n")[0] == b"READY=1"
    assert server.healthy(), "ready means healthy"
    assert stat.S_IMODE(Path(server.socket).stat().st_mode) == 0o770
    assert server.run.end(number) == 0
    assert notices.recv(500).split(b"\n")[0] == b"STOPPING=1"
    assert not Path(server.socket).exists()
    log = server.run.output()
    assert "Traceback" not in log
    assert log.splitlines()[-1].endswith('level=info msg="Server stopped gracefully"')


def test_a_signal_during_the_start(server: Server) -> None:
    server.run.start()
    eventually(lambda: "Configured" in server.run.output(), "the first log line")
    assert server.run.end(signal.SIGTERM) == 0
    assert "Traceback" not in server.run.output()


def test_a_socket_that_a_killed_server_left_behind(server: Server) -> None:
    server.start()
    server.run.end(signal.SIGKILL)
    assert Path(server.socket).exists()
    server.start()
    assert server.healthy()


def test_folders_are_made(tmp_path: Path, server: Server) -> None:
    server.socket = str(tmp_path / "run" / "spire" / "api.sock")
    server.configure()
    server.run.start()
    eventually(server.healthy, "a healthy server")
    assert stat.S_IMODE(Path(server.socket).parent.stat().st_mode) & 0o007 == 0


def test_a_folder_that_cannot_be_made(tmp_path: Path, server: Server) -> None:
    (tmp_path / "file").write_text("")
    server.socket = str(tmp_path / "file" / "api.sock")
    server.configure()
    server.run.start()
    assert server.run.wait() == 1
    last = server.run.output().splitlines()[-1]
    assert "socket_path" in last
    assert str(tmp_path / "file") in last


def test_every_fault_of_the_plugins_has_its_line(server: Server) -> None:
    text = server.config.read_text().replace("plugins {", 'plugins {\n  NodeAttestor "smoke" { plugin_data {} }\n')
    server.config.write_text(text.replace('KeyManager "memory"', 'KeyManager "cloud"'))
    server.run.start()
    assert server.run.wait() == 1
    output = server.run.output()
    assert "Traceback" not in output
    for name in ("smoke", "cloud"):
        [line] = [line for line in output.splitlines() if name in line and "level=error" in line]
        assert "server.conf:" in line


def test_a_silent_connection_does_not_hold_up_the_end(server: Server) -> None:
    server.start()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(server.socket)
        assert server.run.end(signal.SIGTERM) == 0


def test_the_log_goes_to_a_file(tmp_path: Path, server: Server) -> None:
    file = tmp_path / "server.log"
    server.run = Program([*server.run.command, "-logFile", str(file)], server.run.log)
    server.start()
    assert "Starting Server APIs" in file.read_text()
    moved = tmp_path / "server.log.1"
    file.rename(moved)
    assert server.run.process is not None
    os.kill(server.run.process.pid, signal.SIGUSR2)
    eventually(file.exists, "a new log file")
    assert server.run.end() == 0
    assert "Server stopped gracefully" in file.read_text()
