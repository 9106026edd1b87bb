"""A thousand workloads that hold streams, and an entry that comes: how long until each has it, and what that costs."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from dataclasses import dataclass

from bench.measure import cpu_seconds, rss_mib
from generated.spire.api.server.entry.v1 import entry_pb2 as entry_rpc_pb2
from generated.spire.api.types import entry_pb2, selector_pb2, spiffeid_pb2
from tests.simulators import spire
from tests.simulators.crowd import Crowd, gathered
from transport.client import Channel

PROCESSES = 1000
SYNC_INTERVAL = 5.0
SETTLED = 1.0
"""Seconds in which an agent is done with what it does after the last stream has its update."""


@dataclass(frozen=True)
class Update:
    """Seconds from the entry's creation until each stream has it, and from the first to the last; the agent's CPU."""

    delays: list[float]
    cpu: float

    @property
    def spread(self) -> float:
        return max(self.delays) - min(self.delays)


@dataclass(frozen=True)
class Found:
    """`gathering` is the agent's CPU for taking on all streams; RSS is in MiB, before, with all, and after updates."""

    gathering: float
    updates: list[Update]
    idle: float
    held: float
    after: float

    def percentile(self, percent: int) -> float:
        """Of all streams' delays in all rounds."""
        delays = sorted(delay for update in self.updates for delay in update.delays)
        return delays[min(len(delays) * percent // 100, len(delays) - 1)]

    @property
    def cpu(self) -> float:
        """Of one update of all streams."""
        return statistics.median(update.cpu for update in self.updates)

    @property
    def spread(self) -> float:
        return statistics.median(update.spread for update in self.updates)


async def measure(server: spire.Server, agent: spire.Agent, node: str, rounds: int) -> Found:
    """The agent has one entry for this user."""
    assert agent.run.process is not None
    pid = agent.run.process.pid
    idle, before = rss_mib(pid), cpu_seconds(pid)
    with gathered(agent.socket, PROCESSES) as crowd:
        await asyncio.to_thread(crowd.until, 1)
        await asyncio.sleep(SETTLED)
        gathering, held = cpu_seconds(pid) - before, rss_mib(pid)
        updates: list[Update] = []
        for number in range(rounds):
            # Each at another moment of the agent's interval, or all would come just after it has asked.
            await asyncio.sleep(SYNC_INTERVAL * number / rounds)
            updates.append(await _update(server, node, crowd, pid, number))
        return Found(gathering, updates, idle, held, rss_mib(pid))


async def _update(server: spire.Server, node: str, crowd: Crowd, pid: int, number: int) -> Update:
    before = cpu_seconds(pid)
    async with Channel.unix(server.socket) as channel:
        request = entry_rpc_pb2.BatchCreateEntryRequest(entries=[_entry(node, number)])
        created = await channel.unary(
            "/spire.api.server.entry.v1.Entry/BatchCreateEntry", request, entry_rpc_pb2.BatchCreateEntryResponse
        )
        assert created.results[0].status.code == 0, created
    begun = time.monotonic()
    arrivals = await asyncio.to_thread(crowd.until, number + 2)
    await asyncio.sleep(SETTLED)
    return Update([arrival.at - begun for arrival in arrivals.values()], cpu_seconds(pid) - before)


def _entry(node: str, number: int) -> entry_pb2.Entry:
    trust_domain, _, path = node.removeprefix("spiffe://").partition("/")
    return entry_pb2.Entry(
        parent_id=spiffeid_pb2.SPIFFEID(trust_domain=trust_domain, path=f"/{path}"),
        spiffe_id=spiffeid_pb2.SPIFFEID(trust_domain=trust_domain, path=f"/update/{number}"),
        selectors=[selector_pb2.Selector(type="unix", value=f"uid:{os.getuid()}")],
    )
