"""A pid that is another process's by the time it is looked at gives nobody the other's identities."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
OWN_NAMESPACE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a PID namespace and choose its pids")


def outcome(*words: str) -> str:
    done = subprocess.run(
        [*OWN_NAMESPACE, sys.executable, "-m", "tests.simulators.reused_pid", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("attestor", ["unix", "docker", "systemd", "old-systemd"])
@pytest.mark.parametrize("moment", ["accepted", "asked", "answered"])
@pytest.mark.parametrize("way", [[], ["without-pidfd"]], ids=["pidfd", "start-time"])
def test_a_caller_that_gave_way_is_refused(moment: str, attestor: str, way: list[str]) -> None:
    assert outcome(moment, attestor, *way) == "refused: workload attestation failed"


def test_a_caller_that_gave_way_before_it_was_accepted_is_refused() -> None:
    assert outcome("connected", "unix").endswith("connected and is gone")


@pytest.mark.parametrize("attestor", ["unix", "docker", "systemd", "old-systemd"])
def test_a_caller_that_stays_is_served(attestor: str) -> None:
    assert outcome("never", attestor).startswith("given ")


def test_the_proc_of_another_namespace_is_refused() -> None:
    code = "from agent.workload_attestation import WorkloadAttestation; WorkloadAttestation([])"
    command = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert "/proc is not that of our own PID namespace" in done.stderr
