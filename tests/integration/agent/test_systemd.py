"""The agent and its workloads as units of a real systemd, which runs in namespaces of the test's own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from attestors import processes
from attestors.systemd.attestor import SystemdAttestor
from operations.errors import Refused
from tests.integration.conftest import MakeAgent, MakeServer
from tests.simulators import spire
from tests.simulators.machine import Machine
from tests.simulators.spire import eventually
from transport.peer import PidFd, Process

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a systemd in namespaces of its own")

PIDFDS_SINCE = 253


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    try:
        machine.boot()
        yield machine
    finally:
        machine.halt()


def fetch(agent: spire.Agent) -> list[str]:
    return [agent.program, "api", "fetch", "x509", "-socketPath", agent.socket]


def test_a_unit_gets_its_identity_and_another_does_not(
    machine: Machine, make_server: MakeServer, make_agent: MakeAgent
) -> None:
    server = make_server(key_manager=spire.MEMORY)
    server.start()
    agent = make_agent(server, token_value=server.join_token("spiffe://example.org/node"))
    text = agent.config.read_text()
    agent.config.write_text(text.replace('WorkloadAttestor "unix" { plugin_data {} }', 'WorkloadAttestor "systemd" {}'))
    server.create_entry(
        "spiffe://example.org/node",
        "spiffe://example.org/web",
        selectors=[
            "systemd:id:web@1.service",
            "systemd:fragment_path:/run/systemd/system/web@1.service",
            "systemd:cgroup_path:/system.slice/system-web.slice/web@1.service",
        ],
    )
    machine.start("spire-agent", [agent.program, "run", "-config", str(agent.config)])

    def fetched() -> str:
        machine.start("web@1", fetch(agent), "Type=oneshot", "SuccessExitStatus=1")
        output = (machine.folder / "web@1.log").read_text()
        return output if "Received" in output else ""

    assert "spiffe://example.org/web\n" in eventually(fetched, "the SVID of a unit")
    machine.start("other", fetch(agent), "Type=oneshot", "SuccessExitStatus=1")
    assert "no identity issued" in (machine.folder / "other.log").read_text()
    # What comes from outside is in none of this systemd's units, so that the one attestor there is fails.
    outside = machine.run(*fetch(agent), check=False)
    assert "workload attestation failed" in outside.stdout + outside.stderr
    log = (machine.folder / "spire-agent.log").read_text()
    assert "does not belong to any loaded unit" in log
    machine.run("systemctl", "stop", "spire-agent.service")


async def test_an_agent_that_sees_other_pids_than_systemd(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.start("web", ["/bin/sleep", "600"])
    pid = int((machine.groups[0] / "system.slice/web.service/cgroup.procs").read_text())
    assert pid != machine.pid("web")
    socket = f"/proc/{machine.first}/root/run/dbus/system_bus_socket"
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={socket}")
    process = Process(pid, 0, 0, processes.started(pid), PidFd.of(pid))
    attestor = SystemdAttestor()
    try:
        if version(machine) >= PIDFDS_SINCE:
            found = [str(each) for each in await attestor.attest(process)]
            assert found[0] == "systemd:id:web.service"
        else:
            with pytest.raises(Refused, match="systemd is in another PID namespace than the agent"):
                await attestor.attest(process)
    finally:
        await attestor.close()


ATTEST = """
import asyncio, sys
from attestors import processes
from attestors.systemd.attestor import SystemdAttestor
from transport.peer import PidFd, Process
async def attest(pid):
    attestor = SystemdAttestor()
    print(*await attestor.attest(Process(pid, 0, 0, processes.started(pid), PidFd.of(pid))), sep="\\n")
    await attestor.close()
asyncio.run(attest(int(sys.argv[1])))
"""


def test_an_agent_that_is_not_root(machine: Machine) -> None:
    """The bus's own policy says what others than root may ask systemd."""
    machine.start("web", ["/bin/sleep", "600"])
    user = ["setpriv", "--reuid=33", "--regid=33", "--clear-groups", "env", f"PYTHONPATH={spire.ROOT}"]
    done = machine.run(*user, sys.executable, "-c", ATTEST, str(machine.pid("web")))
    assert done.stdout.splitlines() == [
        "systemd:id:web.service",
        "systemd:fragment_path:/run/systemd/system/web.service",
        "systemd:cgroup_path:/system.slice/web.service",
    ]


def version(machine: Machine) -> int:
    return int(machine.run("systemctl", "--version").stdout.split()[1])
