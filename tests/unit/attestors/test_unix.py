from __future__ import annotations

import grp
import hashlib
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from attestors import processes
from attestors.unix import Configuration, UnixAttestor
from operations.errors import NotFound, Refused
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
        yield process_of(running.pid)
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


def test_a_name_with_parentheses_does_not_confuse(tmp_path: Path) -> None:
    program = tmp_path / "a) R 1 (b"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    with subprocess.Popen([program, "600"]) as running:
        assert processes.started(running.pid) >= processes.started(os.getpid())
        running.kill()
