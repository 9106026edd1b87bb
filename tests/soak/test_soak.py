"""Rotations at lives of seconds, under load, for SPIRE_SOAK_SECONDS: no workload ever holds an SVID that has run out,
and neither memory nor descriptors grow.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import pkcs11
from tests.simulators import softhsm
from tests.simulators.spire import Agent, Server
from tests.soak.pressure import NODE, WORKLOAD, load
from tests.soak.resources import Record, sample
from tests.soak.workloads import Tally, X509Workload, watch

SECONDS = float(os.environ.get("SPIRE_SOAK_SECONDS", "3600"))
WORKLOADS = 50
ENTRIES = 4
LIVES = """default_x509_svid_ttl = "20s"
  default_jwt_svid_ttl = "20s"
  agent_ttl = "30s"
  ca_ttl = "4m"
"""
PROGRESS = 30.0


@pytest.fixture
def started(tmp_path: Path) -> Iterator[tuple[Server, Agent]]:
    """Lives of seconds and keys in a token; the log of each says only what is worth it, or it would fill the disk."""
    token = softhsm.SoftHsm.create(tmp_path / "token")
    folder = tmp_path / "server"
    server = Server(
        folder, pkcs11(token, folder / "keys.json"), LIVES, environment={"SOFTHSM2_CONF": str(token.configuration)}
    )
    agent: Agent | None = None
    try:
        server.start()
        agent = Agent(tmp_path / "agent", server, token=server.join_token(NODE))
        for made in (server, agent):
            made.config.write_text(made.config.read_text().replace('"DEBUG"', '"WARN"'))
        server.run.end()
        server.start()
        agent.start()
        for number in range(ENTRIES):
            server.create_entry(NODE, f"{WORKLOAD}{number}")
        agent.fetch()
        yield server, agent
    finally:
        for program in (agent, server):
            if program is not None and program.run.process is not None:
                program.run.end()


@pytest.mark.soak
@pytest.mark.timeout(SECONDS + 600)
async def test_soak(started: tuple[Server, Agent], capsys: pytest.CaptureFixture[str]) -> None:
    server, agent = started
    tally = Tally()
    workloads = [X509Workload(agent.socket, tally) for _ in range(WORKLOADS)]
    records = [Record(name, pid_of(program)) for name, program in (("server", server), ("agent", agent))]
    end = time.monotonic() + SECONDS
    with capsys.disabled():
        print()
        try:
            async with asyncio.timeout(SECONDS), asyncio.TaskGroup() as tasks:
                for workload in workloads:
                    tasks.create_task(workload.run())
                tasks.create_task(watch(workloads))
                tasks.create_task(sample(records))
                tasks.create_task(tell(tally, records, end))
                for work in load(agent.socket, server, tally):
                    tasks.create_task(work)
        except TimeoutError:
            pass
        tell_once(tally, records, 0)
    assert all(workload.ready for workload in workloads)
    # Each entry's SVID is renewed at half of its life, for each workload.
    assert tally.x509_svids >= WORKLOADS * ENTRIES * SECONDS / 20
    assert tally.fetches > SECONDS
    assert tally.jwt_svids > SECONDS
    assert tally.rotations >= SECONDS // 150
    for record in records:
        record.check()


def pid_of(program: Server | Agent) -> int:
    process = program.run.process
    assert process is not None
    return process.pid


async def tell(tally: Tally, records: list[Record], end: float) -> None:
    while True:
        await asyncio.sleep(PROGRESS)
        tell_once(tally, records, end - time.monotonic())


def tell_once(tally: Tally, records: list[Record], left: float) -> None:
    held = "; ".join(
        f"{record.name} {record.memory[-1]:.1f} MiB, {record.descriptors[-1]} descriptors" for record in records
    )
    print(
        f"{left:.0f} s left: {tally.x509_svids} X509-SVIDs, replaced with {tally.least_left:.1f} s or more left; "
        f"{tally.rotations} new authorities; {tally.fetches} fetches; {tally.jwt_svids} JWT-SVIDs; {held}",
        flush=True,
    )
