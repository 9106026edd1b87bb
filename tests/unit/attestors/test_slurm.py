"""Selectors of Slurm's jobs: by the paths alone, and of processes in real cgroups of those names."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from attestors import processes
from attestors.slurm import SlurmAttestor, Step, step_of
from operations.errors import NotFound, Refused
from tests.simulators.cgroups import OWN, cgroup
from transport.peer import PidFd, Process

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("path", "step"),
    [
        (b"/system.slice/slurmstepd.scope/s5K1KKYAYG5D00/step_0/user/task_0", Step("sluid:s5K1KKYAYG5D00", "0")),
        (b"/system.slice/slurmstepd.scope/job_3385/step_batch/slurm", Step("job_id:3385", "batch")),
        (b"/system.slice/slurmstepd.scope/job_42/step_extern/user/task_0", Step("job_id:42", "extern")),
        (
            b"/system.slice/slurmstepd.scope/sEKNKTV3WPV500/step_interactive",
            Step("sluid:sEKNKTV3WPV500", "interactive"),
        ),
        (b"/system.slice/node1_slurmstepd.scope/job_100/step_1/slurm", Step("job_id:100", "1")),
        (b"/system.slice/slurmstepd.scope/job_7/step_\xc3\xbc", Step("job_id:7", "ü")),
    ],
)
def test_steps(path: bytes, step: Step) -> None:
    assert step_of([b"/", path, path]) == step


@pytest.mark.parametrize(
    "path",
    [
        b"/",
        b"/system.slice/docker-0123456789abcdef.scope",
        b"/user.slice/user-1000.slice/session-3.scope",
        # What users may make in slices of their own.
        b"/user.slice/user-1000.slice/user@1000.service/slurmstepd.scope/job_999/step_0",
        b"/user.slice/user-1000.slice/system.slice/slurmstepd.scope/job_999/step_0",
        b"/../system.slice/slurmstepd.scope/job_999/step_0",
        b"/x\n/system.slice/slurmstepd.scope/job_999/step_0",
        # What slurmstepd does not make.
        b"/system.slice/slurmstepd.scope/system",
        b"/system.slice/slurmstepd.scope/job_/step_0",
        b"/system.slice/slurmstepd.scope/job_12x/step_0",
        "/system.slice/slurmstepd.scope/job_٣/step_0".encode(),
        b"/system.slice/slurmstepd.scope/s/step_0",
        b"/system.slice/slurmstepd.scope/s12-3/step_0",
        b"/system.slice/slurmstepd.scope/job_1/step_",
        b"/system.slice/slurmstepd.scope/job_1",
        b"/system.slice/a/slurmstepd.scope/job_1/step_0",
        b"/system.slice/slurmstepdXscope/job_1/step_0",
    ],
)
def test_what_is_no_step(path: bytes) -> None:
    assert step_of([path]) is None


def test_several_jobs_are_refused() -> None:
    scope = b"/system.slice/slurmstepd.scope"
    with pytest.raises(Refused) as caught:
        step_of([scope + b"/job_1/step_0/slurm", b"/", scope + b"/s1/step_0"])
    assert str(caught.value) == "multiple Slurm jobs found in cgroups (job_id:1/step_0, sluid:s1/step_0)"
    with pytest.raises(Refused):
        step_of([scope + b"/job_1/step_0/slurm", scope + b"/job_1/step_1/slurm"])


def test_a_name_that_no_selector_could_have_is_refused() -> None:
    with pytest.raises(Refused, match="no UTF-8"):
        step_of([b"/system.slice/slurmstepd.scope/job_1/step_\xff"])


@pytest.fixture
def task() -> Iterator[Process]:
    """A process where slurmstepd would have put it."""
    path = f"system.slice/{OWN}_slurmstepd.scope/job_4711/step_batch/user/task_0"
    with cgroup(path) as group, group.running() as running:
        yield replace(running, pidfd=PidFd.of(running.pid))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make the system's cgroups")
async def test_a_task_of_a_job(task: Process) -> None:
    assert [str(each) for each in await SlurmAttestor().attest(task)] == ["slurm:job_id:4711", "slurm:step:batch"]


async def test_what_is_no_job_has_no_selectors() -> None:
    pid = os.getpid()
    assert await SlurmAttestor().attest(Process(pid, os.getuid(), os.getgid(), processes.started(pid))) == []


@pytest.fixture
def gone() -> Process:
    with subprocess.Popen(["true"]) as running:
        return Process(running.pid, 0, 0, 1)


async def test_a_process_that_is_gone(gone: Process) -> None:
    with pytest.raises(NotFound):
        await SlurmAttestor().attest(gone)


ATTEST = """
import asyncio, sys
from attestors.slurm import SlurmAttestor
from operations.errors import Refused
from transport.peer import Process
try:
    asyncio.run(SlurmAttestor().attest(Process(int(sys.argv[1]), 0, 0, 1)))
except Refused as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a cgroup namespace")
def test_an_agent_that_does_not_see_the_hosts_cgroups_says_so(task: Process) -> None:
    """Its namespace's root is a cgroup beside the task's."""
    with cgroup(f"{OWN}-aside") as aside:
        enter = f'echo $$ > {aside.folder}/cgroup.procs && exec unshare --cgroup "$@"'
        done = subprocess.run(
            ["sh", "-c", enter, "sh", sys.executable, "-c", ATTEST, str(task.pid)],
            cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
    assert done.stdout == (
        f"the cgroups of process {task.pid} are outside of the agent's cgroup namespace: "
        "run the agent in the host's, where it sees Slurm's\n"
    )
