"""One request for all who wait, and not more often than the interval."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

import pytest

from attestors.k8s.pod_lists import PodLists
from attestors.k8s.pods import Pods
from operations.errors import TemporarilyUnavailable

EMPTY = Pods({})


class Requests:
    """Counts them; each waits until it is let go, and fails if it is told to."""

    def __init__(self) -> None:
        self.started: list[float] = []
        self.failing = False
        self.let_go = asyncio.Event()
        self.let_go.set()

    async def __call__(self) -> Pods:
        self.started.append(asyncio.get_running_loop().time())
        await self.let_go.wait()
        if self.failing:
            raise TemporarilyUnavailable("away")
        return EMPTY


@pytest.fixture
def requests() -> Requests:
    return Requests()


@pytest.fixture
async def make(requests: Requests) -> AsyncGenerator[Callable[[float], PodLists]]:
    made: list[PodLists] = []

    def new(interval: float) -> PodLists:
        made.append(PodLists(requests, interval))
        return made[-1]

    yield new
    for each in made:
        await each.close()


async def test_all_who_wait_share_one_request(requests: Requests, make: Callable[[float], PodLists]) -> None:
    lists = make(600.0)
    requests.let_go.clear()
    waiting = [asyncio.ensure_future(lists.after(0)) for _ in range(100)]
    await asyncio.sleep(0.01)
    requests.let_go.set()
    assert {each.version for each in await asyncio.gather(*waiting)} == {1}
    assert (await lists.after(0)).version == 1, "what is fresh is good for the next, too"
    assert len(requests.started) == 1


async def test_a_later_list_comes_after_the_interval(requests: Requests, make: Callable[[float], PodLists]) -> None:
    lists = make(0.2)
    version = 0
    for expected in (1, 2, 3):
        version = (await lists.after(version)).version
        assert version == expected
    first, second, third = requests.started
    assert second - first >= 0.19
    assert third - second >= 0.19


async def test_an_old_list_is_good_for_nobody(requests: Requests, make: Callable[[float], PodLists]) -> None:
    lists = make(0.01)
    await lists.after(0)
    await asyncio.sleep(0.05)
    assert (await lists.after(0)).version == 2


async def test_a_failure_is_told_to_all_and_not_remembered(
    requests: Requests, make: Callable[[float], PodLists]
) -> None:
    lists = make(0.05)
    requests.failing = True
    results = await asyncio.gather(*(lists.after(0) for _ in range(3)), return_exceptions=True)
    assert [str(each) for each in results] == ["away"] * 3
    assert len(requests.started) == 1
    requests.failing = False
    assert (await lists.after(0)).version == 1
    assert requests.started[1] - requests.started[0] >= 0.04


async def test_who_gives_up_takes_nothing_from_the_others(
    requests: Requests, make: Callable[[float], PodLists]
) -> None:
    lists = make(600.0)
    requests.let_go.clear()
    first, second = (asyncio.ensure_future(lists.after(0)) for _ in range(2))
    await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.sleep(0.01)
    requests.let_go.set()
    assert (await second).version == 1
    assert first.cancelled()


async def test_a_failure_that_nobody_waits_for_is_no_news(
    requests: Requests, make: Callable[[float], PodLists]
) -> None:
    lists = make(0.01)
    requests.let_go.clear()
    requests.failing = True
    waiting = asyncio.ensure_future(lists.after(0))
    await asyncio.sleep(0.01)
    waiting.cancel()
    requests.let_go.set()
    await asyncio.sleep(0.05)
    requests.failing = False
    assert (await lists.after(0)).version == 1


async def test_closing_lets_everybody_go(requests: Requests, make: Callable[[float], PodLists]) -> None:
    lists = make(600.0)
    requests.let_go.clear()
    waiting = asyncio.ensure_future(lists.after(0))
    await asyncio.sleep(0.01)
    await lists.close()
    with pytest.raises(TemporarilyUnavailable, match="pod list fetcher is closed"):
        await waiting
    with pytest.raises(TemporarilyUnavailable, match="pod list fetcher is closed"):
        await lists.after(0)
