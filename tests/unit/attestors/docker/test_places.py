"""Processes whose cgroups bear a container's name: whether they are in it."""

from __future__ import annotations

import os

import pytest

from operations.errors import Refused
from tests.simulators.contained import (
    DOCKERS,
    ID,
    OTHER_ID,
    SELECTORS,
    attestor_of,
    process_in,
    selectors,
)
from tests.simulators.docker_daemon import Daemon, Handler
from transport.peer import Process

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may make cgroups")


async def test_a_process_in_a_cgroup_that_only_bears_a_containers_name(daemon: Daemon, no_waits: None) -> None:
    """Users of systemd, and containers with cgroups of their own, may call a cgroup as they please."""
    with process_in(DOCKERS) as process, process_in(f"user-61234.slice/docker-{ID}.scope") as forging:
        daemon.run(ID, pid=process.pid)
        attesting = attestor_of(daemon)
        assert await selectors(attesting, process) == SELECTORS
        with pytest.raises(Refused, match=f"is in a cgroup named like container {ID}, but outside it"):
            await selectors(attesting, forging)
    with process_in(DOCKERS) as process, process_in(f"docker-{OTHER_ID}.scope/{ID}") as forging:
        daemon.run(ID, pid=process.pid)
        assert await selectors(attesting, process) == SELECTORS
        with pytest.raises(Refused, match="but outside it"):
            await selectors(attesting, forging)


async def test_processes_that_a_container_has_put_below(daemon: Daemon) -> None:
    """As systemd does within a container."""
    with process_in(f"{DOCKERS}/init.scope") as first, process_in(f"{DOCKERS}/system.slice/web.service") as process:
        daemon.run(ID, pid=first.pid)
        assert await selectors(attestor_of(daemon), process) == SELECTORS


async def test_a_first_process_of_which_nothing_is_known(daemon: Daemon, process: Process) -> None:
    """The daemon may count pids in another namespace."""
    attesting = attestor_of(daemon)
    for pid in (1, 2**22 + 1):
        daemon.run(ID, pid=pid)
        assert await selectors(attesting, process) == SELECTORS


@pytest.mark.parametrize("status", ["created", "exited", "dead", "stopped"])
async def test_a_container_that_does_not_run(daemon: Daemon, process: Process, no_waits: None, status: str) -> None:
    daemon.run(ID, status=status)
    with pytest.raises(Refused, match=f"^container {ID} does not run: it is {status}$"):
        await selectors(attestor_of(daemon), process)


async def test_a_container_that_is_about_to_run(daemon: Daemon, process: Process) -> None:
    def fault(handler: Handler) -> bool:
        handler.daemon.run(ID, pid=process.pid, status="created" if len(handler.daemon.requests) < 3 else "running")
        return False

    daemon.fault = fault
    assert await selectors(attestor_of(daemon), process) == SELECTORS
