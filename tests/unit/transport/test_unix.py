"""Unix sockets: paths that are refused, and callers that are gone."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from operations.errors import ConfigurationError
from tests.simulators.echo import UNARY, Echo, EchoService
from tests.simulators.passable import passable
from transport import unix
from transport.client import Channel

ROOT = Path(__file__).parents[3]
LISTEN = """
import sys
from transport import unix
listener = unix.bind(sys.argv[1], 0o700)
listener.setblocking(True)
print("ready", flush=True)
accepted, _ = listener.accept()
try:
    unix.caller(accepted)
except ConnectionError:
    print("refused")
process = unix.caller(accepted, strangers=True)
print(process.pid, process.uid, process.gid)
"""
CONNECT = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "cannot listen on '': this is no path; give the path of a file"),
        ("@spire", "cannot listen on '@spire': an abstract socket has no permissions; give the path of a file"),
        ("\0spire", "cannot listen on '\\x00spire': an abstract socket has no permissions; give the path of a file"),
        ("/tmp/a\0b", "cannot listen on '/tmp/a\\x00b': this is no path; give the path of a file"),
    ],
)
def test_what_is_no_path_is_refused(path: str, reason: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        unix.bind(path, 0o700)
    assert str(caught.value) == reason


def test_a_path_that_is_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    unix.bind("ö" * 53 + "x", 0o700).close()  # 107 bytes
    path = "ö" * 54
    with pytest.raises(ConfigurationError) as caught:
        unix.bind(path, 0o700)
    assert str(caught.value) == (
        f"cannot listen on {path}: the path has 108 bytes, of which a Unix socket's may have 107; choose a shorter one"
    )
    assert [each.name for each in tmp_path.iterdir()] == ["ö" * 53 + "x"]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "absent" / "api.sock"
    with pytest.raises(ConfigurationError) as caught:
        unix.bind(str(path), 0o700)
    assert str(caught.value) == (f"cannot listen on {path}: no such file or directory; check the path and its folder")


def test_a_caller_is_known(tmp_path: Path) -> None:
    with unix.bind(str(tmp_path / "api.sock"), 0o700) as listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "api.sock"))
        accepted, _ = listener.accept()
        with accepted:
            process = unix.caller(accepted)
    assert (process.pid, process.uid, process.gid) == (os.getpid(), os.getuid(), os.getgid())
    assert process.started > 0


def test_a_caller_that_is_gone_is_told_apart(tmp_path: Path) -> None:
    path = str(tmp_path / "api.sock")
    with unix.bind(path, 0o700) as listener:
        caller = subprocess.Popen([sys.executable, "-c", CONNECT, path])
        caller.wait(30)
        accepted, _ = listener.accept()
        with accepted, pytest.raises(ConnectionError, match=rf"^process {caller.pid} connected and is gone$"):
            unix.caller(accepted)


def test_a_caller_that_has_ended_but_is_still_listed_is_gone_too(tmp_path: Path) -> None:
    """A zombie: /proc still has it, and after it is reaped its pid may be another's."""
    path = str(tmp_path / "api.sock")
    with unix.bind(path, 0o700) as listener:
        caller = subprocess.Popen([sys.executable, "-c", CONNECT, path])
        os.waitid(os.P_PID, caller.pid, os.WEXITED | os.WNOWAIT)
        accepted, _ = listener.accept()
        with accepted:
            if kernel_knows_pidfds(accepted):
                with pytest.raises(ConnectionError, match="is gone"):
                    unix.caller(accepted)
            else:
                assert unix.caller(accepted).pid == caller.pid
        caller.wait(30)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be sure to make a PID namespace")
def test_a_caller_of_another_pid_namespace_is_known_by_its_user_where_that_is_enough(tmp_path: Path) -> None:
    path = str(tmp_path / "api.sock")
    listening = subprocess.Popen(
        ["unshare", "--fork", "--pid", sys.executable, "-c", LISTEN, path], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert listening.stdout is not None
    with listening.stdout as lines, socket.socket(socket.AF_UNIX) as client:
        assert lines.readline() == "ready\n"
        client.connect(path)
        said = lines.read()
    assert said == f"refused\n0 {os.getuid()} {os.getgid()}\n"
    assert listening.wait(30) == 0


def kernel_knows_pidfds(sock: socket.socket) -> bool:
    try:
        os.close(sock.getsockopt(socket.SOL_SOCKET, 77))
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return True


@pytest.fixture
def pair() -> Iterator[socket.socket]:
    ends = socket.socketpair()
    yield ends[0]
    for end in ends:
        end.close()


def test_a_kernel_that_knows_no_pidfds_of_peers_opens_them_by_pid(
    pair: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unix, "_SO_PEERPIDFD", 9999)
    process = unix.caller(pair)
    assert process.pidfd is not None
    assert f"Pid:\t{os.getpid()}\n" in Path(f"/proc/self/fdinfo/{process.pidfd.fileno()}").read_text()


@pytest.mark.parametrize("error", [PermissionError(1, "sandbox"), OSError(38, "sandbox")])
def test_where_pidfds_are_forbidden_start_times_are_all_there_is(
    pair: socket.socket, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def forbidden(pid: int) -> int:
        del pid
        raise error

    monkeypatch.setattr(unix, "_SO_PEERPIDFD", 9999)
    monkeypatch.setattr(os, "pidfd_open", forbidden)
    process = unix.caller(pair)
    assert process.pidfd is None
    assert process.started > 0


HIDDEN = """
import sys
from transport import unix
listener = unix.bind(sys.argv[1], 0o700)
listener.setblocking(True)
print("ready", flush=True)
accepted, _ = listener.accept()
try:
    unix.caller(accepted)
except Refused as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can hide processes")
def test_a_caller_that_proc_hides_is_refused_with_the_reason(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    passable(tmp_path)
    path = str(tmp_path / "api.sock")
    hide = "mount -t proc -o hidepid=invisible proc /proc && exec setpriv --reuid 61234 --regid 61234 --clear-groups"
    code = "from operations.errors import Refused" + HIDDEN
    listening = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", f'{hide} "$@"', "sh", sys.executable, "-c", code, path],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert listening.stdout is not None
    with listening.stdout as lines, socket.socket(socket.AF_UNIX) as client:
        assert lines.readline() == "ready\n"
        client.connect(path)
        said = lines.read()
    assert said.startswith(f"process {os.getpid()} connected and is not to be seen in /proc: mount /proc of our own")
    assert listening.wait(30) == 0


def test_looking_at_callers_leaves_no_descriptor_behind(tmp_path: Path) -> None:
    path = str(tmp_path / "api.sock")
    with unix.bind(path, 0o700) as listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        accepted, _ = listener.accept()
        with accepted:
            before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counts
            for _ in range(10):
                unix.caller(accepted)
            assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - counts


async def test_callers_are_held_as_long_as_their_connections(socket_path: str, service: EchoService) -> None:
    gc.disable()  # references alone have to end it
    try:
        before = pidfds()
        channels = [Channel.unix(socket_path) for _ in range(20)]
        for channel in channels:
            await channel.unary(UNARY, Echo(), Echo)
        assert pidfds() == before + 20
        service.peers.clear()
        for channel in channels:
            await channel.close()
        async with asyncio.timeout(30):
            while pidfds() > before:  # noqa: ASYNC110 - the server notices in its own time
                await asyncio.sleep(0.02)
    finally:
        gc.enable()


def pidfds() -> int:
    """How many this process has."""
    found = 0
    for each in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names
        with suppress(FileNotFoundError):  # what listed them
            found += "pidfd" in os.readlink(f"/proc/self/fd/{each}")  # noqa: PTH115
    return found
