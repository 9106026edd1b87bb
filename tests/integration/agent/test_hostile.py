"""Workloads that mean harm, against the real agent: it stays small, serves the others, and frees what they leave."""

from __future__ import annotations

import asyncio
import os
import re
import resource
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.workload_api import SECURITY_HEADER
from generated.spiffe.workload import workload_pb2
from tests.simulators import proc, spire
from tests.simulators.hostile import ATTACKS, attacking
from transport.client import Channel
from transport.limits import Limits
from transport.status import Code, RpcError

NODE = "spiffe://example.org/node"
WORKLOAD = "spiffe://example.org/workload"
HOSTILE = [61234, 61235]
GROWTH = 320 << 20
"""What any of this may cost: ours and what the interpreter keeps for later."""


@pytest.fixture
def agent(tmp_path: Path, programs: list[spire.Program]) -> spire.Agent:
    return started(tmp_path, programs)


def started(folder: Path, programs: list[spire.Program]) -> spire.Agent:
    server = spire.Server(folder / "server")
    programs.append(server.run)
    server.start()
    made = spire.Agent(folder / "agent", server, token=server.join_token(NODE), log_level="INFO")
    programs.append(made.run)
    for uid in HOSTILE:
        server.create_entry(NODE, f"spiffe://example.org/{uid}", selectors=[f"unix:uid:{uid}"])
    server.create_entry(NODE, WORKLOAD)
    made.start()
    made.fetch()
    return made


def pid_of(agent: spire.Agent) -> int:
    assert agent.run.process is not None
    return agent.run.process.pid


PATIENT = Limits(handshake=spire.PATIENCE)
"""What counts is that a workload is served, however busy the machine is."""


@asynccontextmanager
async def streaming(agent: spire.Agent) -> AsyncGenerator[AsyncIterator[workload_pb2.X509SVIDResponse], None]:
    channel = Channel.unix(agent.socket, limits=PATIENT)
    try:
        yield channel.server_stream(
            "/SpiffeWorkloadAPI/FetchX509SVID",
            workload_pb2.X509SVIDRequest(),
            workload_pb2.X509SVIDResponse,
            metadata={SECURITY_HEADER: "true"},
        )
    finally:
        await channel.close()


async def fetched(agent: spire.Agent) -> list[str]:
    """What a workload that comes now is given."""
    async with asyncio.timeout(spire.PATIENCE), streaming(agent) as updates:
        return [each.spiffe_id for each in (await anext(updates)).svids]


async def until_it_has(updates: AsyncIterator[workload_pb2.X509SVIDResponse], spiffe_id: str) -> None:
    async with asyncio.timeout(spire.PATIENCE):
        while spiffe_id not in [each.spiffe_id for each in (await anext(updates)).svids]:
            pass


async def freed(agent: spire.Agent, descriptors: int) -> None:
    """What the attack had is closed."""
    pid = pid_of(agent)
    await asyncio.to_thread(
        spire.eventually, lambda: len(proc.descriptors(pid)) <= descriptors, f"{descriptors} descriptors"
    )


async def settled(pid: int) -> int:
    """How many descriptors it has, those of callers that have gone being closed."""
    seen: list[int] = []
    while len(seen) < 10 or len(set(seen[-10:])) > 1:
        await asyncio.sleep(0.1)
        seen.append(len(proc.descriptors(pid)))
    return seen[-1]


@pytest.mark.parametrize("attack", sorted(ATTACKS))
async def test_harm(agent: spire.Agent, attack: str) -> None:
    """By processes of several users, the victim's own among them."""
    pid = pid_of(agent)
    quiet, small = len(proc.descriptors(pid)), proc.memory(pid)
    async with streaming(agent) as updates:
        await anext(updates)
        with attacking(agent.socket, attack, [os.getuid(), *HOSTILE]) as attacks:
            while not all(each.done for each in attacks):
                assert WORKLOAD in await fetched(agent)
            # Who was there before hears of changes.
            added = "spiffe://example.org/added"
            await asyncio.to_thread(agent.server.create_entry, NODE, added)
            await until_it_has(updates, added)
            assert added in await fetched(agent)
            assert await asyncio.to_thread(agent.healthy)
        await freed(agent, quiet + 2)  # this stream's: the socket, and what holds its caller
    assert proc.peak_memory(pid) - small < GROWTH, f"{(proc.peak_memory(pid) - small) >> 20} MiB"
    assert "Traceback" not in agent.run.output()


async def test_what_was_taken_is_free_again(agent: spire.Agent) -> None:
    pid = pid_of(agent)
    quiet = len(proc.descriptors(pid))
    peaks: list[int] = []
    for _ in range(4):
        with attacking(agent.socket, "hoard", HOSTILE) as attacks:
            while not all(each.done for each in attacks):
                assert WORKLOAD in await fetched(agent)
        await freed(agent, quiet)
        peaks.append(proc.peak_memory(pid))
    assert peaks[-1] - peaks[1] < 32 << 20


async def test_a_process_that_has_its_share_is_told(agent: spire.Agent) -> None:
    channels = [Channel.unix(agent.socket, limits=PATIENT) for _ in range(3400)]

    async def call(channel: Channel) -> RpcError | None:
        stream = channel.server_stream(
            "/SpiffeWorkloadAPI/FetchX509SVID", workload_pb2.X509SVIDRequest(), workload_pb2.X509SVIDResponse
        )
        try:
            await anext(stream)
        except RpcError as error:
            return error
        return None

    errors = [await call(channel) for channel in channels]
    for channel in channels:
        await channel.close()
    first = errors[0]
    assert first is not None
    assert (first.code, first.message) == (Code.INVALID_ARGUMENT, "security header missing from request")
    last = errors[-1]
    assert last is not None
    assert last.code is Code.UNAVAILABLE
    assert re.search(r"too many connections are open: this process holds \d+", last.message)


def few_descriptors(agent: spire.Agent, count: int) -> None:
    """Start the agent anew with so many."""
    agent.run.end()
    agent.run.command = ["sh", "-c", f'ulimit -n {count} && exec "$0" "$@"', *agent.run.command]
    agent.start()


@pytest.mark.parametrize("attack", ["crowd", "crowded_flood"])
async def test_with_few_descriptors_the_others_are_served(agent: spire.Agent, attack: str) -> None:
    await asyncio.to_thread(few_descriptors, agent, 128)
    quiet = len(proc.descriptors(pid_of(agent)))
    with attacking(agent.socket, attack, HOSTILE[:1]) as (hostile,):
        while not hostile.done:
            assert WORKLOAD in await fetched(agent)
        assert WORKLOAD in await fetched(agent)
        assert len(proc.descriptors(pid_of(agent))) < 128
    await freed(agent, quiet)


async def test_it_outlives_a_lack_of_descriptors(agent: spire.Agent) -> None:
    pid = pid_of(agent)
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    async with streaming(agent) as updates:
        await anext(updates)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (await settled(pid), limits[1]))
        waiting = asyncio.ensure_future(fetched(agent))
        await asyncio.to_thread(
            spire.eventually, lambda: "no more connections are accepted for now" in agent.run.output(), "its complaint"
        )
        assert not waiting.done()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        assert WORKLOAD in await waiting
        # Who was there before has lost nothing.
        added = "spiffe://example.org/added"
        await asyncio.to_thread(agent.server.create_entry, NODE, added)
        await until_it_has(updates, added)
    assert agent.run.output().count("no more connections are accepted for now") == 1
