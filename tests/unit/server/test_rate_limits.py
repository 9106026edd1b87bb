from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from generated.spire.api.server.agent.v1 import agent_pb2
from generated.spire.api.server.svid.v1 import svid_pb2
from server.rate_limits import RateLimit, server_limits
from tests.simulators.house import AGENT, SVID, refused, running
from transport.status import Code, RpcError


async def test_a_burst_passes_and_then_calls_wait() -> None:
    now = 100.0
    limit = RateLimit(2, clock=lambda: now)
    await limit.wait("a", 2, deadline=100.0)
    with pytest.raises(RpcError, match=r"rate: Wait\(n=1\) would exceed context deadline"):
        await limit.wait("a", 1, deadline=100.4)
    await limit.wait("b", 2, deadline=100.0)
    now = 100.5
    await limit.wait("a", 1, deadline=100.5)
    now = 1000.0
    await limit.wait("a", 2, deadline=1000.0)
    with pytest.raises(RpcError):
        await limit.wait("a", 1, deadline=1000.0)


async def test_more_than_a_burst_never_passes() -> None:
    with pytest.raises(RpcError) as error:
        await RateLimit(500).wait("a", 501, None)
    assert error.value.code is Code.RESOURCE_EXHAUSTED
    assert error.value.message == "rate (501) exceeds burst size (500)"


async def test_a_call_that_gives_up_returns_its_tokens() -> None:
    now = 0.0
    limit = RateLimit(1, clock=lambda: now)
    await limit.wait("a", 1, None)
    waiting = asyncio.create_task(limit.wait("a", 1, None))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    now = 1.0
    await limit.wait("a", 1, deadline=1.0)


async def test_the_table_is_bounded() -> None:
    limit = RateLimit(1, clock=lambda: 0.0, size=2)
    for key in ("a", "b", "c"):
        await limit.wait(key, 1, deadline=0.0)
    await limit.wait("a", 1, deadline=0.0)
    with pytest.raises(RpcError):
        await limit.wait("c", 1, deadline=0.0)


def test_switches() -> None:
    assert len(server_limits(attestation=True, signing=True)) == 8
    assert list(server_limits(attestation=False, signing=False)) == [
        "/spire.api.server.agent.v1.Agent/PostStatus",
        "/spire.api.server.bundle.v1.Bundle/PublishJWTAuthority",
    ]


async def test_the_server_limits_attestation_and_signing(tmp_path: Path) -> None:
    async with running(tmp_path, ratelimit="attestation = true\n signing = true") as house:
        agent = await house.attest()
        error = await refused(
            agent.channel,
            SVID + "BatchNewX509SVID",
            svid_pb2.BatchNewX509SVIDRequest(params=[svid_pb2.NewX509SVIDParams()] * 501),
        )
        assert error.code is Code.RESOURCE_EXHAUSTED
        assert error.message == (
            "rejecting request due to certificate signing rate limiting: rate (501) exceeds burst size (500)"
        )
        stranger = await house.remote()
        code = Code.OK
        while code is not Code.RESOURCE_EXHAUSTED:  # the second, unless the machine took a second for the first
            async with stranger.bidi(AGENT + "AttestAgent", agent_pb2.AttestAgentResponse, timeout=0.2) as stream:
                await stream.close_send()
                with pytest.raises(RpcError) as refusal:
                    await stream.recv()
                code = refusal.value.code
