"""Real processes in real cgroups, as engines name them, and what processes can make of /proc."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from attestors import processes
from attestors.containers import locator
from attestors.containers.locator import NOWHERE, Container, Workers, locate
from operations import logs
from operations.errors import NotFound, Refused
from tests.simulators.cgroups import OWN, cgroup
from transport.peer import Process

ID = "c0ffee00" * 8
POD = "6d1c63a5-f6f7-4d6b-9a1b-6f3e0b2c9d10"
ROOT = Path(__file__).parents[4]

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may make cgroups and namespaces")


@as_root
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (f"docker-{ID}.scope", Container(ID)),
        (f"docker-{ID}.scope/init.scope", Container(ID)),
        (f"kubepods/besteffort/pod{POD}/{ID}", Container(ID, POD)),
        ("plain.service", NOWHERE),
    ],
)
async def test_processes_in_cgroups(path: str, expected: Container) -> None:
    with cgroup(f"{OWN}/{path}") as group, group.running() as process:
        assert await Workers().ask(process, locate) == expected
        assert locate(process.pid, pods=False) == Container(expected.container_id)
        assert os.fsencode(group.path) in locator.cgroups(process.pid)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as running:
        yield running
        running.kill()


async def test_a_process_outside_of_containers(child: subprocess.Popen[bytes]) -> None:
    process = Process(child.pid, os.getuid(), os.getgid(), processes.started(child.pid))
    assert await Workers().ask(process, locate) == NOWHERE
    child.kill()
    child.wait()
    assert locate(child.pid) == NOWHERE
    with pytest.raises(NotFound):
        await Workers().ask(process, locate)


async def test_a_reused_pid_is_refused() -> None:
    process = Process(os.getpid(), os.getuid(), os.getgid(), processes.started(os.getpid()) - 1)
    with pytest.raises(Refused, match="another process"):
        await Workers().ask(process, locate)


@as_root
def test_what_was_looked_at_is_logged_when_wanted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "spire")
    with cgroup(f"{OWN}/{ID}") as group, group.running() as process:
        locate(process.pid)
        assert not caplog.records
        locate(process.pid, log=logs.get("docker"))
    fields = [vars(record)["fields"] for record in caplog.records if record.message == "PID cgroup enumerated"]
    assert [each["index"] for each in fields] == list(range(1, len(fields) + 1))
    assert {each["total"] for each in fields} == {len(fields)}
    assert group.path in [each["path"] for each in fields]


MOUNT_ANOTHERS_CGROUP = """
mount --bind "$1" /mnt && echo mounted && exec sleep 600
"""


@as_root
def test_a_process_cannot_borrow_a_containers_cgroup_by_mounting_it() -> None:
    """Any user can do this in a user namespace: mountinfo then shows the container's cgroup as one of its own."""
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", MOUNT_ANOTHERS_CGROUP, "sh"]
    with (
        cgroup(f"{OWN}/docker-{ID}.scope") as group,
        cgroup(f"{OWN}/plain.service") as plain,
        subprocess.Popen([*unshare, group.folder], stdout=subprocess.PIPE) as child,
    ):
        assert child.stdout is not None
        assert child.stdout.readline() == b"mounted\n"
        plain.add(child.pid)
        assert f"{group.path} /mnt" in Path(f"/proc/{child.pid}/mountinfo").read_text()
        assert locate(child.pid) == NOWHERE
        child.kill()


LOCATE_FROM_WITHIN = """
import os, subprocess, sys
from attestors.containers import locator
within = [locator.locate(int(pid)) for pid in sys.argv[1:]]
print(*(f"{each.container_id or '-'}" for each in within))
"""


@as_root
def test_an_agent_in_a_container_asks_mounts_only_of_those_in_its_own() -> None:
    """From a cgroup namespace's root, as agents in containers see it.

    A process beside the agent has the path `/` there, and only its mounts may tell; one outside of the container could
    say anything by its own.
    """
    with (
        cgroup(f"{OWN}/docker-{ID}.scope") as other,
        cgroup(f"{OWN}/agent") as mine,
        cgroup(f"{OWN}/plain.service") as outside,
        other.running() as in_other,
    ):
        mounting = ["unshare", "--mount", "sh", "-c", MOUNT_ANOTHERS_CGROUP, "sh", str(other.folder)]
        with (
            subprocess.Popen(mounting, stdout=subprocess.PIPE) as beside,
            subprocess.Popen(mounting, stdout=subprocess.PIPE) as forging,
        ):
            for child, group in (beside, mine), (forging, outside):
                assert child.stdout is not None
                assert child.stdout.readline() == b"mounted\n"
                group.add(child.pid)
            # The shell enters the cgroup first, so that its new namespace has it as its root.
            enter = 'echo $$ > "$1/cgroup.procs"; shift; exec unshare --cgroup "$@"'
            pids = [str(each) for each in (in_other.pid, beside.pid, forging.pid)]
            done = subprocess.run(
                ["sh", "-c", enter, "sh", str(mine.folder), sys.executable, "-c", LOCATE_FROM_WITHIN, *pids],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=True,
            )
            assert done.stdout.split() == [ID, ID, "-"]
            beside.kill()
            forging.kill()


def test_huge_files_are_refused() -> None:
    with pytest.raises(Refused, match=r"^/proc/\d+/environ is larger than 10 bytes$"):
        processes.read(os.getpid(), "environ", limit=10)
