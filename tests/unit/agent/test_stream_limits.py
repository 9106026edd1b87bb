from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from agent.stream_limits import Allowance, StreamLimits
from tests.simulators.in_process_agent import until
from transport.peer import Process

ONE, SIBLING, OTHER = Process(1, 0, 0, 1), Process(2, 0, 0, 1), Process(3, 7, 0, 1)


class Unread:
    """Responses of a size to a process that does not read; `read` takes the first."""

    def __init__(self, allowance: Allowance, size: int) -> None:
        self._allowance = allowance
        self._size = size
        self.sent: list[asyncio.Event] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def _send(self) -> None:
        async with self._allowance.sending(self._size):
            read = asyncio.Event()
            self.sent.append(read)
            await read.wait()

    def send(self, count: int) -> None:
        self.tasks += [asyncio.create_task(self._send()) for _ in range(count)]

    def read(self) -> None:
        self.sent.pop(0).set()

    def some_sent(self) -> bool:
        return len(self.sent) > 5

    async def end(self) -> None:
        for each in self.tasks:
            each.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def settled(holds: Callable[[], bool]) -> None:
    await until(holds)
    for _ in range(5):
        await asyncio.sleep(0)
    assert holds()


async def test_responses_wait_for_those_that_are_not_read() -> None:
    limits = StreamLimits(900)
    with limits.stream_of(ONE) as allowance:
        mine = Unread(allowance, 10)
        mine.send(100)
        await settled(lambda: len(mine.sent) == 30)
        mine.read()
        await settled(lambda: len(mine.sent) == 30)
        mine.tasks[-1].cancel()
        mine.tasks[1].cancel()
        await settled(lambda: len(mine.sent) == 31)  # with the one that was cancelled
        await mine.end()
        mine.send(100)
        await settled(lambda: len(mine.sent) == 61)
        await mine.end()


async def test_whoever_waits_goes_on_one_by_one_to_the_last() -> None:
    limits = StreamLimits(900)
    with limits.stream_of(ONE) as allowance:
        mine = Unread(allowance, 100)
        mine.send(50)
        while not all(each.done() for each in mine.tasks):
            await until(lambda: mine.sent)
            mine.read()
            await asyncio.sleep(0)
        assert allowance.fits(300)


async def test_a_process_that_does_not_read_keeps_nobody_waiting() -> None:
    limits = StreamLimits(900)
    crowds = [Unread(limits.stream_of(process), 10) for process in (ONE, SIBLING, OTHER)]
    for crowd in crowds:
        crowd.send(100)
        await settled(crowd.some_sent)
    for crowd in crowds:
        await crowd.end()


async def test_one_response_is_always_let_through_however_large() -> None:
    limits = StreamLimits(900)
    with limits.stream_of(ONE) as allowance:
        mine = Unread(allowance, 5000)
        mine.send(2)
        await settled(lambda: len(mine.sent) == 1)
        mine.read()
        await settled(lambda: len(mine.sent) == 1 and mine.tasks[0].done())
        await mine.end()


async def test_a_turn_that_is_cancelled_is_the_next_ones() -> None:
    limits = StreamLimits(900)
    with limits.stream_of(ONE) as allowance:
        mine = Unread(allowance, 300)
        mine.send(3)
        await settled(lambda: len(mine.sent) == 1)
        mine.read()
        await asyncio.sleep(0)  # the first has ended, and the second was told that it may go on
        mine.tasks[1].cancel()
        with suppress(asyncio.CancelledError):
            await mine.tasks[1]
        await settled(lambda: len(mine.sent) == 1)
        await mine.end()


def test_a_process_is_forgotten_with_its_last_stream() -> None:
    limits = StreamLimits()
    allowance = limits.stream_of(ONE)
    assert limits.stream_of(ONE) is allowance
    assert limits.stream_of(OTHER) is not allowance
    limits.stream_of(None)
