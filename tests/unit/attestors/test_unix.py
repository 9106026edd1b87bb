from __future__ import annotations

import asyncio
import grp
import hashlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from attestors import processes
from attestors.turns import Turns
from attestors.unix import Configuration, UnixAttestor
from operations.errors import NotFound, Refused
from tests.simulators.passable import passable
from transport.peer import Process


def process_of(pid: int) -> Process:
    return Process(pid, os.getuid(), os.getgid(), processes.started(pid))


@pytest.fixture
def child(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program of our own, so that its path and content are known."""
    program = tmp_path / "program"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    with subprocess.Popen([program, "600"]) as running:
        yield running
        running.kill()


async def selectors_of(process: Process, configuration: Configuration | None = None) -> list[str]:
    return [str(each) for each in await UnixAttestor(configuration or Configuration()).attest(process)]


async def test_owner_and_groups() -> None:
    found = await selectors_of(process_of(os.getpid()))
    assert f"unix:uid:{os.geteuid()}" in found
    assert f"unix:user:{pwd.getpwuid(os.geteuid()).pw_name}" in found
    assert f"unix:gid:{os.getegid()}" in found
    assert f"unix:group:{grp.getgrgid(os.getegid()).gr_name}" in found
    supplementary = {each for each in found if each.startswith("unix:supplementary_gid:")}
    assert supplementary == {f"unix:supplementary_gid:{each}" for each in os.getgroups()}
    assert not [each for each in found if each.startswith(("unix:path:", "unix:sha256:"))]


@pytest.fixture
def stranger() -> Iterator[Process]:
    """A process of a user without a name."""
    with subprocess.Popen(["sleep", "600"], user=61234, group=61235, extra_groups=[61236, 0]) as running:
        yield Process(running.pid, 61234, 61235, processes.started(running.pid))
        running.kill()


@pytest.fixture
def gone() -> Process:
    with subprocess.Popen(["true"]) as running:
        return process_of(running.pid)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may take another identity")
async def test_supplementary_groups_and_owners_without_a_name(stranger: Process) -> None:
    found = await selectors_of(stranger)
    assert found == [
        "unix:uid:61234",
        "unix:gid:61235",
        "unix:supplementary_gid:0",
        "unix:supplementary_group:root",
        "unix:supplementary_gid:61236",
    ]


async def test_program(child: subprocess.Popen[bytes], tmp_path: Path) -> None:
    found = await selectors_of(process_of(child.pid), Configuration(discover_workload_path=True))
    program = tmp_path / "program"
    assert f"unix:path:{program}" in found
    assert f"unix:sha256:{hashlib.sha256(program.read_bytes()).hexdigest()}" in found


async def test_the_program_that_runs_is_hashed_not_the_one_that_took_its_place(
    child: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    program = tmp_path / "program"
    digest = hashlib.sha256(program.read_bytes()).hexdigest()
    program.rename(tmp_path / "moved")
    program.write_bytes(b"another")
    found = await selectors_of(process_of(child.pid), Configuration(discover_workload_path=True))
    assert f"unix:sha256:{digest}" in found
    assert f"unix:path:{program}" not in found


async def test_a_size_limit_refuses(child: subprocess.Popen[bytes]) -> None:
    with pytest.raises(Refused, match="workload_size_limit"):
        await selectors_of(process_of(child.pid), Configuration(discover_workload_path=True, workload_size_limit=100))


async def test_a_negative_size_limit_hashes_nothing(child: subprocess.Popen[bytes]) -> None:
    found = await selectors_of(
        process_of(child.pid), Configuration(discover_workload_path=True, workload_size_limit=-1)
    )
    assert not [each for each in found if each.startswith("unix:sha256:")]
    assert [each for each in found if each.startswith("unix:path:")]


async def test_a_reused_pid_is_refused() -> None:
    me = process_of(os.getpid())
    with pytest.raises(Refused, match="another process"):
        await selectors_of(Process(me.pid, me.uid, me.gid, me.started - 1))


async def test_a_process_that_is_gone(gone: Process) -> None:
    with pytest.raises(NotFound):
        await selectors_of(gone)


@pytest.fixture
def zombie() -> Iterator[Process]:
    """A process that has ended and whose parent has not asked for it."""
    with subprocess.Popen(["sleep", "600"]) as running:
        process = process_of(running.pid)
        running.kill()
        os.waitid(os.P_PID, running.pid, os.WEXITED | os.WNOWAIT)
        yield process


async def test_a_process_that_has_ended_is_no_caller_though_its_pid_is_kept(zombie: Process) -> None:
    with pytest.raises(NotFound, match="has ended"):
        await selectors_of(zombie)
    with pytest.raises(NotFound, match="has ended"):
        processes.require_same(zombie)


async def test_a_process_that_became_another_users_is_refused() -> None:
    me = process_of(os.getpid())
    for changed in (replace(me, uid=me.uid + 1), replace(me, gid=me.gid + 1)):
        with pytest.raises(Refused, match="and now is of"):
            await selectors_of(changed)
        with pytest.raises(Refused, match="and now is of"):
            processes.require_same(changed)
    processes.require_same(me)


def honours_set_uid(folder: Path) -> bool:
    """Whether set-uid counts there. Containers like to mount /tmp so that it does not (mount(8), nosuid)."""
    return not os.statvfs(folder).f_flag & os.ST_NOSUID


@pytest.fixture
def privileged(tmp_path: Path) -> Iterator[Process]:
    """What becomes of a user's process that connected and then executes a set-uid program of root's."""
    passable(tmp_path)
    place = next(folder for folder in (tmp_path, Path("/var/tmp")) if honours_set_uid(folder))
    with tempfile.TemporaryDirectory(dir=place) as folder:
        Path(folder).chmod(0o755)
        program = Path(folder) / "program"
        shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
        program.chmod(0o4755)
        with subprocess.Popen([program, "600"], user=61234, group=61235, extra_groups=[]) as running:
            yield Process(running.pid, 61234, 61235, processes.started(running.pid))
            running.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a set-uid program of root's")
async def test_a_set_uid_program_gives_nobody_its_users_identity(privileged: Process) -> None:
    assert processes.owner(privileged.pid).uid == 0
    with pytest.raises(Refused, match="and now is of user 0"):
        await selectors_of(privileged)
    with pytest.raises(Refused, match="and now is of user 0"):
        processes.require_same(privileged)


@pytest.fixture
def in_many_groups() -> Iterator[Process]:
    with subprocess.Popen(["sleep", "600"], extra_groups=range(100_000, 105_000)) as running:
        yield process_of(running.pid)
        running.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may take another identity")
async def test_a_process_in_more_groups_than_anybody_needs_is_refused(in_many_groups: Process) -> None:
    with pytest.raises(Refused, match="5000 groups"):
        await selectors_of(in_many_groups)


@pytest.fixture
def huge(tmp_path: Path) -> Iterator[Process]:
    """A program that takes hours to read, and no room on the disk."""
    program = tmp_path / "huge"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    os.truncate(program, 1 << 40)
    with subprocess.Popen([program, "600"]) as running:
        yield process_of(running.pid)
        running.kill()


async def test_reading_a_huge_program_ends_with_the_call(huge: Process, child: subprocess.Popen[bytes]) -> None:
    attestor = UnixAttestor(Configuration(discover_workload_path=True))
    waiting = [asyncio.ensure_future(attestor.attest(huge)) for _ in range(20)]
    await asyncio.sleep(0.2)
    for each in waiting:
        each.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    async with asyncio.timeout(30):
        assert await attestor.attest(process_of(child.pid))


async def test_one_users_slow_programs_do_not_hold_up_anothers() -> None:
    turns = Turns(2)
    held = [asyncio.ensure_future(hold(turns, 1000)) for _ in range(50)]
    await asyncio.sleep(0)
    async with asyncio.timeout(30), turns.of(1001):
        pass
    for each in held:
        each.cancel()
    await asyncio.gather(*held, return_exceptions=True)
    async with asyncio.timeout(30), turns.of(1000), turns.of(1000):
        pass


async def hold(turns: Turns, uid: int) -> None:
    async with turns.of(uid):
        await asyncio.Event().wait()


def test_a_name_with_parentheses_does_not_confuse(tmp_path: Path) -> None:
    program = tmp_path / "a) R 1 (b"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    with subprocess.Popen([program, "600"]) as running:
        assert processes.started(running.pid) >= processes.started(os.getpid())
        running.kill()
