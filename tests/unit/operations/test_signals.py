from __future__ import annotations

import asyncio
import os
import signal

from operations import signals


async def test_all_who_listen_are_told_until_they_leave() -> None:
    first, second = asyncio.Event(), asyncio.Event()
    leave_first = signals.listen(signal.SIGUSR1, first.set)
    leave_second = signals.listen(signal.SIGUSR1, second.set)
    os.kill(os.getpid(), signal.SIGUSR1)
    async with asyncio.timeout(30):
        await first.wait()
        await second.wait()
    leave_first()
    leave_first()
    first.clear()
    second.clear()
    os.kill(os.getpid(), signal.SIGUSR1)
    async with asyncio.timeout(30):
        await second.wait()
    assert not first.is_set()
    leave_second()
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
