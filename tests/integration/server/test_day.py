"""A day of many agents, replayed at speed while the server is killed at random moments: nothing acknowledged is lost.

`SPIRE_DAY_AGENTS=1000 SPIRE_DAY_KILLS=50` is the whole of it, some minutes long; without, it is a small day.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time

import pytest

from tests.integration.conftest import MakeServer
from tests.simulators.day import HALF_HOURS, LIFE, Day, Machine
from tests.simulators.rotations import Rotations

AGENTS = int(os.environ.get("SPIRE_DAY_AGENTS", "24"))
KILLS = int(os.environ.get("SPIRE_DAY_KILLS", "8"))
AT_ONCE = 64
"""Machines that are in their day at the same time."""


@pytest.mark.timeout(60 * 60)
async def test_nothing_acknowledged_is_lost(make_server: MakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    server = make_server(settings=f'default_jwt_svid_ttl = "{LIFE}s"')
    await asyncio.to_thread(server.start)
    day = Day(server)
    await day.resume()
    authorities = (await day.bundle()).x509_authorities
    machines = [Machine(day, number) for number in range(AGENTS)]
    places = asyncio.Semaphore(AT_ONCE)

    async def live(machine: Machine) -> None:
        async with places:
            await machine.live()

    began = time.monotonic()
    # By progress, not by time, so that each of them meets a busy server.
    total = AGENTS * HALF_HOURS * 4
    moments = sorted(chance.sample(range(total // 50, total), KILLS))
    rotations = Rotations(day)
    rotating = sorted(chance.sample(range(total // 50, total), KILLS))
    async with asyncio.TaskGroup() as lives:
        for machine in machines:
            lives.create_task(live(machine))
        lives.create_task(rotations.live(rotating))
        for moment in moments:
            await day.progress(moment)
            await day.kill(signal.SIGKILL)
            await asyncio.to_thread(server.start)
            await day.check(machines)
            await rotations.check()
            await day.resume()
    await day.check(machines)
    await rotations.check()
    assert set(authorities) <= set((await day.bundle()).x509_authorities)
    assert day.unanswered, "no kill met a request"
    with capsys.disabled():
        print(
            f"\n{AGENTS} agents, {day.answered} requests answered, {day.epoch - 1} kills, {rotations.done} rotations, "
            f"{day.unanswered} requests unanswered, {time.monotonic() - began:.0f} s"
        )
    await day.close()
