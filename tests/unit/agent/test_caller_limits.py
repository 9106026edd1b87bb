from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from agent.caller_limits import Allowance, CallerLimits
from tests.simulators.in_process_agent import until
from transport.status import Code, RpcError

ONE, OTHER = "spiffe://example.org/one", "spiffe://example.org/other"


def test_a_caller_has_a_limit_and_others_have_theirs() -> None:
    limits = CallerLimits(3)
    with ExitStack() as streams:
        for _ in range(3):
            streams.enter_context(limits.stream_of(ONE))
        with pytest.raises(RpcError, match="this caller has 3 streams open") as caught, limits.stream_of(ONE):
            pass
        assert caught.value.code is Code.RESOURCE_EXHAUSTED
        streams.enter_context(limits.stream_of(OTHER))
    with limits.stream_of(ONE) as allowance:
        assert allowance.streams == 1


def test_what_a_callers_streams_keep_has_a_limit_and_is_given_back() -> None:
    allowance = Allowance()
    with ExitStack() as kept:
        kept.enter_context(allowance.keeping(20 << 20))
        with pytest.raises(RpcError) as caught, allowance.keeping(20 << 20):
            pass
        assert caught.value.code is Code.RESOURCE_EXHAUSTED
        kept.enter_context(allowance.keeping(1 << 20))
    with allowance.keeping(32 << 20):
        pass


async def test_large_responses_wait_for_those_that_are_not_read_and_small_ones_do_not() -> None:
    allowance = Allowance()
    sending: list[int] = []

    async def send(size: int) -> None:
        async with allowance.sending(size):
            sending.append(size)
            await asyncio.Event().wait()

    tasks = [asyncio.ensure_future(send(1 << 20)) for _ in range(100)]
    await asyncio.sleep(0)
    assert len(sending) == 16
    tasks.append(asyncio.ensure_future(send(1000)))
    await asyncio.sleep(0)
    assert sending[-1] == 1000
    tasks[0].cancel()
    await until(lambda: len(sending) == 18)
    for each in tasks:
        each.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
