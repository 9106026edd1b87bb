"""The process of a served plugin: its beginning, its log, its ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

import pytest

from tests.simulators.spire import PATIENCE, eventually
from tests.unit.plugins.external.conftest import Load, Log, load, log

__all__ = ["load", "log"]

PLUGIN = ("-m", "tests.simulators.served")
COOKIE = {"KeyManager": "KeyManager"}


def gone(pid: int) -> bool:
    """Ended, waited for or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def children(pid: int) -> list[int]:
    return [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]


def line_of(pipe: IO[bytes] | None) -> bytes:
    assert pipe is not None
    return pipe.readline()


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the plugins of a test make their sockets, by a short path; nothing may stay there."""
    with TemporaryDirectory(prefix="plugins-") as path:
        yield Path(path)
        assert not list(Path(path).iterdir())


@contextmanager
def started(folder: Path, *command: str) -> Generator[subprocess.Popen[bytes]]:
    """A program that is told of `folder`, and has ended when the block ends."""
    process = subprocess.Popen(
        [sys.executable, *(command or PLUGIN)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **COOKIE, "PLUGIN_UNIX_SOCKET_DIR": str(folder)},
    )
    try:
        with process:
            yield process
    finally:
        process.kill()


@pytest.mark.parametrize("side", ["server", "agent"])
async def test_a_host_gets_the_service_that_it_asks_for(load: Load, log: Log, side: str) -> None:
    manager = await load("KeyManager", side=side, args=PLUGIN, data_text='device = "good"')
    assert await manager.list() == []
    [opened] = log.named("Opened")
    assert (opened["device"], opened["key"]) == ("good", "01")


def test_the_socket_is_this_users_alone(folder: Path) -> None:
    with started(folder) as process:
        path = Path(line_of(process.stdout).decode().split("|")[3])
        assert path.parent.parent == folder
        assert (path.parent.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o700, 0o600)
        process.terminate()


def test_it_ends_on_sigterm(folder: Path) -> None:
    with started(folder) as process:
        assert line_of(process.stdout).startswith(b"1|1|unix|")
        process.send_signal(signal.SIGINT)  # the terminal's, which is for the host
        process.terminate()
        assert process.wait(PATIENCE) == 0


def test_it_ends_when_nobody_reads_its_output(folder: Path) -> None:
    with started(folder) as process:
        line_of(process.stdout)
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize("wrapper", [(), ("sh", "-c", '"$0" "$@"; true')], ids=["itself", "behind a script that stays"])
def test_it_ends_when_its_host_is_killed(folder: Path, wrapper: Sequence[str]) -> None:
    code = (
        "import subprocess, sys, time\n"
        "plugin = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE)\n"
        "plugin.stdout.readline(); print(plugin.pid, flush=True); time.sleep(3600)"
    )
    with started(folder, "-c", code, *wrapper, sys.executable, *PLUGIN) as host:
        begun = int(line_of(host.stdout))
        found = [begun, *children(begun)]
        assert len(found) == (2 if wrapper else 1)
        host.kill()
    eventually(lambda: all(map(gone, found)), "the plugin's end")


async def test_on_sigterm_the_host_says_goodbye_first(load: Load, log: Log, tmp_path: Path) -> None:
    """As when systemd stops a service, and sends it to all of its processes."""
    wrapper = tmp_path / "plugin"
    wrapper.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec {sys.executable} -m tests.simulators.served\n")
    wrapper.chmod(0o755)
    manager = await load("KeyManager", command=str(wrapper), args=(), data_text="")
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
    await manager.close()
    assert log.named("Plugin deinitialized")
    assert log.named("plugin exited")


@pytest.mark.parametrize("word", ["hangs", "leaves-child"])
async def test_it_ends_with_what_it_started_whatever_hangs(load: Load, tmp_path: Path, word: str) -> None:
    wrapper = tmp_path / "plugin"
    wrapper.write_text(
        f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec {sys.executable} -m tests.simulators.served {word}\n"
    )
    wrapper.chmod(0o755)
    await load("KeyManager", command=str(wrapper), args=(), data_text="")
    pid = int((tmp_path / "pid").read_text())
    left = children(pid)
    assert bool(left) == (word == "leaves-child")
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: gone(pid) and all(map(gone, left)), "the end")
