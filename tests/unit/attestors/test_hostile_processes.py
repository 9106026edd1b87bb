"""The unix attestor before processes that are made to mislead it, or to keep it busy."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from agent.workload_attestation import WorkloadAttestation
from attestors import processes, programs
from attestors.threads import Threads
from attestors.unix import Configuration, UnixAttestor
from identity.selectors import Selector
from operations.errors import Refused, TemporarilyUnavailable
from tests.simulators.spire import eventually
from transport import unix
from transport.peer import Peer, PidFd, Process

ROOT = Path(__file__).parents[3]
USER = 61234
SLEEP = shutil.which("sleep") or "/bin/sleep"

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root may make namespaces and take other identities")


def process_of(pid: int, uid: int = -1, gid: int = -1) -> Process:
    owner = (os.getuid() if uid < 0 else uid, os.getgid() if gid < 0 else gid)
    return Process(pid, *owner, processes.started(pid), PidFd.of(pid))


@contextmanager
def running(*command: str | Path, **options: object) -> Generator[int, None, None]:
    with subprocess.Popen(command, **options) as child:  # type: ignore[call-overload]
        try:
            yield child.pid
        finally:
            child.kill()


def descendant(pid: int, program: str) -> int:
    """The process of that program which a process started, or became."""

    def found() -> int | None:
        each = pid
        while Path(f"/proc/{each}/exe").readlink().name != program:
            children = Path(f"/proc/{each}/task/{each}/children").read_text().split()
            if not children:
                return None
            each = int(children[0])
        return each

    return eventually(found, f"a process that runs {program}")


async def program_of(process: Process) -> tuple[str, str]:
    found = dict(each.value.split(":", 1) for each in await UnixAttestor(PROGRAMS).attest(process))
    return found["path"], found["sha256"]


def content(path: Path | str) -> bytes:
    return Path(path).read_bytes()


def digest(path: Path | str) -> str:
    return hashlib.sha256(content(path)).hexdigest()


PROGRAMS = Configuration(discover_workload_path=True)


async def test_a_deleted_program(tmp_path: Path) -> None:
    program = tmp_path / "program"
    shutil.copy(SLEEP, program)
    expected = digest(program)
    with running(program, "600") as pid:
        program.unlink()
        assert await program_of(process_of(pid)) == (f"{program} (deleted)", expected)


async def test_a_program_in_memory() -> None:
    descriptor = os.memfd_create("evil", 0)
    try:
        os.write(descriptor, content(SLEEP))
        with running(f"/proc/self/fd/{descriptor}", "600", pass_fds=[descriptor]) as pid:
            assert await program_of(process_of(pid)) == ("/memfd:evil (deleted)", digest(SLEEP))
    finally:
        os.close(descriptor)


async def test_names_of_programs(tmp_path: Path) -> None:
    program = tmp_path / 'two\nlines" level=info ü'
    shutil.copy(SLEEP, program)
    with running(program, "600") as pid:
        assert (await program_of(process_of(pid)))[0] == str(program)
    nameless = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")
    shutil.copy(SLEEP, nameless)
    with running(nameless, "600") as pid, pytest.raises(Refused, match="is no UTF-8: no selector has it"):
        await program_of(process_of(pid))


EXECUTES_EACH_OTHER = 'exec "$2" -c "$0" "$0" "$2" "$1"'


async def test_path_and_digest_are_of_one_program_though_another_is_executed(tmp_path: Path) -> None:
    """Two programs execute each other without end."""
    one, other = tmp_path / "one", tmp_path / "other"
    shutil.copy("/bin/sh", one)
    other.write_bytes(one.read_bytes() + b"other")
    other.chmod(0o755)
    expected = {str(each): digest(each) for each in (one, other)}
    with running(one, "-c", EXECUTES_EACH_OTHER, EXECUTES_EACH_OTHER, one, other) as pid:
        process = process_of(pid)
        seen: set[str] = set()
        async with asyncio.timeout(120):
            while len(seen) < 2:
                for _ in range(20):
                    path, sha256 = await program_of(process)
                    assert sha256 == expected[path]
                    seen.add(path)


@root_only
async def test_a_mount_namespace_names_programs_and_the_digest_tells(tmp_path: Path) -> None:
    script = f"mount --bind {tmp_path}/program /usr/bin/true && exec /usr/bin/true 600"
    shutil.copy(SLEEP, tmp_path / "program")
    with running("unshare", "--mount", "sh", "-c", script) as pid:
        eventually(lambda: Path(f"/proc/{pid}/exe").readlink() == Path("/usr/bin/true"), "the program")
        path, sha256 = await program_of(process_of(pid))
    assert (path, sha256) == ("/usr/bin/true", digest(SLEEP))
    assert sha256 != digest("/usr/bin/true")


@root_only
async def test_a_user_namespace_makes_nobody_root() -> None:
    command = ["unshare", "--user", "--map-root-user", "sleep", "600"]
    with running(*command, user=USER, group=USER, extra_groups=[]) as pid:
        process = process_of(descendant(pid, "sleep"), USER, USER)
        found = [str(each) for each in await UnixAttestor(Configuration()).attest(process)]
    assert found == [f"unix:uid:{USER}", f"unix:gid:{USER}"]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Everybody may look into it, and set-uid counts there, as it does not in the /tmp of many containers."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


# Its child keeps the connection.
CONNECTS_AND_EXECUTES = """
import os, socket, sys, time
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
connection.set_inheritable(True)
if os.fork():
    os.execv(sys.argv[2], [sys.argv[2], "600"])
time.sleep(600)
"""


@root_only
async def test_a_caller_that_executes_a_set_uid_program_is_refused_whatever_attestors_say(folder: Path) -> None:
    with unix.bind(str(folder / "api.sock"), 0o777) as listener:
        program = folder / "program"
        shutil.copy(SLEEP, program)
        program.chmod(0o4755)
        script = [sys.executable, "-c", CONNECTS_AND_EXECUTES, str(folder / "api.sock"), str(program)]
        with running(*script, user=USER, group=USER, extra_groups=[], start_new_session=True) as pid:
            listener.settimeout(60)
            accepted, _ = listener.accept()
            with accepted:
                peer = Peer("test", process=unix.caller(accepted))
            eventually(lambda: processes.owner(pid).uid == 0, "the set-uid program")
            try:
                with pytest.raises(TemporarilyUnavailable, match="workload attestation failed"):
                    await WorkloadAttestation([UnixAttestor(PROGRAMS), Everybody()]).attest(peer)
            finally:
                os.killpg(pid, signal.SIGKILL)


class Everybody:
    """Finds nothing wrong."""

    name = "everybody"

    async def attest(self, process: Process) -> list[Selector]:
        del process
        return [Selector("everybody", "is")]


@root_only
async def test_a_process_of_a_pid_namespace_below_ours() -> None:
    with running("unshare", "--pid", "--fork", "--kill-child", "sleep", "600") as pid:
        process = process_of(descendant(pid, "sleep"))
        assert "unix:uid:0" in [str(each) for each in await UnixAttestor(Configuration()).attest(process)]


ATTEST = """
import asyncio, sys
from attestors import processes
from attestors.unix import Configuration, UnixAttestor
from identity.selectors import Selector
from operations.errors import Refused, TemporarilyUnavailable
from transport.peer import Process
pid = int(sys.argv[1])
owner = processes.owner(pid)
process = Process(pid, owner.uid, owner.gid, processes.started(pid))
try:
    print(*asyncio.run(UnixAttestor(Configuration()).attest(process)))
except Refused as error:
    print(error)
"""


def in_own_user_namespace(pid: int) -> bool:
    return Path(f"/proc/{pid}/ns/user").readlink() != Path("/proc/self/ns/user").readlink()


@root_only
def test_an_agent_that_does_not_know_users_tells_nobodys_selectors() -> None:
    """In its user namespace there are root and the group 7. All others have one number there, which is nobody's too."""
    maps = "until grep -q . /proc/self/uid_map; do sleep 0.1; done"
    with (
        running("sleep", "600", user=USER, group=USER, extra_groups=[]) as stranger,
        running("sleep", "600", user=0, group=0, extra_groups=[7, 8]) as known,
    ):
        said: list[str] = []
        for pid in (stranger, known):
            inner = f'{maps}; exec "$0" -c "$1" {pid}'
            with subprocess.Popen(
                ["unshare", "--user", "sh", "-c", inner, sys.executable, ATTEST],
                cwd=ROOT, stdout=subprocess.PIPE, text=True,
            ) as agent:  # fmt: skip
                assert agent.stdout is not None
                eventually(partial(in_own_user_namespace, agent.pid), "the namespace")
                Path(f"/proc/{agent.pid}/gid_map").write_text("0 0 1\n7 7 1\n")
                Path(f"/proc/{agent.pid}/uid_map").write_text("0 0 1\n")
                said.append(agent.stdout.read())
    assert said[0] == (
        f"process {stranger} is of a user or group that the agent's user namespace does not know, and seen as 65534 "
        "and 65534 as all such are: run the agent in the host's user namespace\n"
    )
    assert "unix:supplementary_gid:7 " in f"{said[1].strip()} "
    assert "65534" not in said[1]


@root_only
async def test_all_the_groups_that_linux_allows() -> None:
    with (
        running("sleep", "600", extra_groups=range(100_000, 165_536)) as pid,
        pytest.raises(Refused, match=r"/status is larger than 131072 bytes"),
    ):
        await UnixAttestor(Configuration()).attest(process_of(pid))


async def test_threads_that_hang_keep_their_callers_places_and_no_others() -> None:
    threads = Threads("test", most=6, each=2)
    released = threading.Event()
    hanging = [asyncio.ensure_future(threads.run(1000, released.wait)) for _ in range(50)]
    other = [asyncio.ensure_future(threads.run(1001, released.wait)) for _ in range(50)]
    await asyncio.sleep(0.2)
    for each in hanging + other:
        each.cancel()
    await asyncio.gather(*hanging, *other, return_exceptions=True)
    assert len(alive("test")) == 4, "nobody waits for them, and they hang"
    async with asyncio.timeout(60):
        assert await threads.run(1002, lambda: "done") == "done"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await threads.run(1000, lambda: "done")
    released.set()
    async with asyncio.timeout(60):
        assert await threads.run(1000, lambda: "done") == "done"
        with pytest.raises(Refused, match="no"):
            await threads.run(1000, refuse)


def refuse() -> None:
    raise Refused("no")


def alive(name: str) -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == name]


HANG = """
import asyncio, threading
from attestors.threads import Threads
async def main():
    try:
        await asyncio.wait_for(Threads("test", most=1, each=1).run(0, threading.Event().wait), 0.2)
    except TimeoutError:
        print("given up")
asyncio.run(main())
"""


def test_a_process_ends_though_threads_hang() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANG], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ("given up\n", "")


async def test_a_users_file_system_that_hangs_is_that_users_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever makes reading take for ever: what is read is not the attestor's choice."""
    describe = programs.describe
    released = threading.Event()

    def reading(pid: int, size_limit: int, given_up: threading.Event) -> list[tuple[str, str]]:
        if pid == slow.pid:
            released.wait()
        return describe(pid, size_limit, given_up)

    monkeypatch.setattr(programs, "describe", reading)
    attestor = UnixAttestor(PROGRAMS)
    with running("sleep", "600") as slow_pid, running("sleep", "600") as pid:
        slow = process_of(slow_pid)
        for _ in range(20):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await attestor.attest(slow)
        assert len(alive("unix-attestor-programs")) == 2
        released.set()
        async with asyncio.timeout(60):
            assert await attestor.attest(process_of(pid))
