"""The systemd attestor over a real bus, where something answers as systemd does, late, wrong or not at all."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from dbus_fast import Variant

from attestors import processes
from attestors.systemd import bus as bus_module
from attestors.systemd.attestor import SystemdAttestor
from operations.errors import NotFound, Refused, SpireError, TemporarilyUnavailable
from tests.simulators.in_process_agent import until
from tests.simulators.system_bus import SystemBus, Systemd, silent
from transport.peer import PidFd, Process

UNIT = "web-shop@1.service"


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SystemBus]:
    bus = SystemBus(tmp_path)
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.address)
    bus.start()
    yield bus
    bus.stop()


@pytest.fixture
async def systemd(bus: SystemBus, me: Process) -> AsyncIterator[Systemd]:
    systemd = Systemd({me.pid: UNIT})
    async with systemd.on(bus):
        yield systemd


@pytest.fixture
async def attestor() -> AsyncIterator[SystemdAttestor]:
    attestor = SystemdAttestor()
    yield attestor
    await attestor.close()


@pytest.fixture
def me() -> Process:
    pid = os.getpid()
    return Process(pid, os.getuid(), os.getgid(), processes.started(pid), PidFd.of(pid))


async def selectors_of(attestor: SystemdAttestor, process: Process) -> list[str]:
    return [str(each) for each in await attestor.attest(process)]


SELECTORS = [
    f"systemd:id:{UNIT}",
    f"systemd:fragment_path:/lib/systemd/system/{UNIT}",
    f"systemd:cgroup_path:/system.slice/{UNIT}",
]


async def test_the_unit_by_pidfd(systemd: Systemd, attestor: SystemdAttestor, me: Process) -> None:
    assert await selectors_of(attestor, me) == SELECTORS
    assert systemd.calls == ["GetUnitByPIDFD", "Get", "Get", "Get"]


@pytest.mark.parametrize("error", ["UnknownMethod", "AccessDenied"])
async def test_the_unit_by_pid_where_systemd_is_old(
    systemd: Systemd, attestor: SystemdAttestor, me: Process, error: str
) -> None:
    systemd.pidfds = False
    systemd.refusal = f"org.freedesktop.DBus.Error.{error}"
    assert await selectors_of(attestor, me) == SELECTORS
    assert systemd.calls[:2] == ["GetUnitByPIDFD", "GetUnitByPID"]
    assert await selectors_of(attestor, me) == SELECTORS
    assert systemd.calls.count("GetUnitByPIDFD") == 1


async def test_the_unit_by_pid_where_the_kernel_gives_no_pidfd(
    systemd: Systemd, attestor: SystemdAttestor, me: Process
) -> None:
    assert await selectors_of(attestor, replace(me, pidfd=None)) == SELECTORS
    assert systemd.calls[0] == "GetUnitByPID"


async def test_a_transient_scope_has_no_file(systemd: Systemd, attestor: SystemdAttestor, me: Process) -> None:
    systemd.units[me.pid] = "session-3.scope"
    systemd.properties = {"Unit.FragmentPath": Variant("s", ""), "Scope.ControlGroup": Variant("s", "/user.slice/x")}
    assert await selectors_of(attestor, me) == [
        "systemd:id:session-3.scope",
        "systemd:fragment_path:",
        "systemd:cgroup_path:/user.slice/x",
    ]


@pytest.mark.parametrize("pidfds", [True, False])
async def test_a_process_in_no_unit(systemd: Systemd, attestor: SystemdAttestor, me: Process, *, pidfds: bool) -> None:
    systemd.units.clear()
    systemd.pidfds = pidfds
    with pytest.raises(NotFound) as caught:
        await attestor.attest(me)
    assert str(caught.value) == (
        f"failed to get unit by pid {me.pid}: PID {me.pid} does not belong to any loaded unit."
    )


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("Unit.Id", Variant("u", 1), "systemd's answer for Id is not understood: [1]"),
        ("Unit.FragmentPath", Variant("as", []), "systemd's answer for FragmentPath is not understood: [[]]"),
        ("Unit.Id", Variant("s", "x.mount"), "error getting value for ControlGroup: Unknown interface"),
    ],
)
async def test_answers_that_make_no_sense(
    systemd: Systemd, attestor: SystemdAttestor, me: Process, name: str, value: Variant, reason: str
) -> None:
    systemd.properties = {name: value}
    with pytest.raises(Refused) as caught:
        await attestor.attest(me)
    assert str(caught.value).startswith(reason)


async def test_a_process_that_is_gone(systemd: Systemd, attestor: SystemdAttestor, me: Process) -> None:
    running = await asyncio.create_subprocess_exec("sleep", "600")
    process = Process(running.pid, me.uid, me.gid, 1, PidFd.of(running.pid))
    systemd.units[running.pid] = UNIT
    assert await selectors_of(attestor, process) == SELECTORS
    running.kill()
    await running.wait()
    with pytest.raises(SpireError):
        await attestor.attest(process)
    systemd.pidfds = False  # the number may be another's now, of which systemd tells
    with pytest.raises(NotFound, match="has ended"):
        await attestor.attest(process)


@pytest.mark.parametrize("method", ["GetUnitByPIDFD", "Get"])
async def test_a_systemd_that_hangs_is_given_up_and_asked_again(
    systemd: Systemd, attestor: SystemdAttestor, me: Process, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(bus_module, "SLOW", 0.1)
    systemd.hangs = frozenset((method,))
    assert await all_given_up(attestor, me, 100)
    systemd.hangs = frozenset()
    assert await selectors_of(attestor, me) == SELECTORS
    assert len(sockets()) <= 4, "what hung is closed: the test's own pairs and one connection are left"


async def all_given_up(attestor: SystemdAttestor, process: Process, calls: int) -> bool:
    async def attest() -> None:
        async with asyncio.timeout(0.3):
            await attestor.attest(process)

    outcomes = await asyncio.gather(*(attest() for _ in range(calls)), return_exceptions=True)
    return {type(each) for each in outcomes} == {TimeoutError}


def sockets() -> list[str]:
    lines = Path("/proc/self/net/unix").read_text().splitlines()
    # All but the one that keeps this process's ports (tests/simulators/ports.py).
    inodes = {line.split()[6] for line in lines[1:] if "@spire-test-ports-" not in line}
    links = [str(each.readlink()) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]
    return [link for link in links if link.removeprefix("socket:[").removesuffix("]") in inodes]


async def test_a_caller_that_goes_away_takes_nothing_with_it(
    systemd: Systemd, attestor: SystemdAttestor, me: Process
) -> None:
    systemd.hangs = frozenset(("GetUnitByPIDFD",))
    calls = [asyncio.ensure_future(attestor.attest(me)) for _ in range(100)]
    await asyncio.sleep(0.1)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    systemd.hangs = frozenset()
    assert await selectors_of(attestor, me) == SELECTORS


async def test_the_bus_restarts(bus: SystemBus, attestor: SystemdAttestor, me: Process) -> None:
    systemd = Systemd({me.pid: UNIT})
    async with systemd.on(bus):
        assert await selectors_of(attestor, me) == SELECTORS
        systemd.hangs = frozenset(("GetUnitByPIDFD",))
        waiting = asyncio.ensure_future(attestor.attest(me))
        await until(lambda: systemd.calls[-1] == "GetUnitByPIDFD")
        bus.stop()
        with pytest.raises(TemporarilyUnavailable, match="the connection to the system bus was lost"):
            await waiting
    with pytest.raises(TemporarilyUnavailable, match="the system bus cannot be reached: no such file or directory"):
        await attestor.attest(me)
    bus.start()
    with pytest.raises(Refused, match="failed to get unit by pid"):  # systemd comes later
        await attestor.attest(me)
    systemd.hangs = frozenset()
    async with systemd.on(bus):
        assert await selectors_of(attestor, me) == SELECTORS


async def test_what_listens_and_never_answers_is_no_bus(
    tmp_path: Path, attestor: SystemdAttestor, me: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "silent"
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={path}")
    server = await silent(path)
    assert await all_given_up(attestor, me, 10)
    server.close()
    await server.wait_closed()
    with pytest.raises(TemporarilyUnavailable, match="cannot be reached"):
        await attestor.attest(me)


@pytest.mark.parametrize("address", ["nonsense", "unix:path=/", "tcp:host=127.0.0.1,port=1"])
async def test_addresses_that_are_no_bus(
    attestor: SystemdAttestor, me: Process, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
    with pytest.raises(TemporarilyUnavailable, match="the system bus cannot be reached: "):
        await attestor.attest(me)


def test_nothing_of_dbus_is_loaded_without_the_attestor() -> None:
    code = "import sys, agent.run, agent.catalog; print('dbus_fast' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
