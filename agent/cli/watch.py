"""`spire-agent api watch`: prints X509-SVIDs as they come, until it is interrupted."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import aclosing
from datetime import timedelta

from agent.cli.client import HEADER, WORKLOAD_API, SocketFlags, telling
from generated.spiffe.workload import workload_pb2
from operations.errors import SpireError
from operations.flags import FlagSet, Run
from transport.client import Channel
from transport.status import Code, RpcError

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0
"""Seconds between attempts: one more after each failure, from the beginning again after each update."""


def watch(flags: FlagSet) -> Run:
    socket = SocketFlags.declare(flags)

    async def act() -> None:
        async with Channel.unix(socket.resolve()) as channel:
            await _Watcher(channel).run()

    return telling(act)


class _Watcher:
    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._updated = time.monotonic()
        self._pause = FIRST_PAUSE

    async def run(self) -> None:
        """Follows the stream and opens it again; only a request that the agent calls invalid ends it."""
        while True:
            try:
                await self._follow()
                print("the agent ended the stream", file=sys.stderr)
            except RpcError as error:
                if error.code in (Code.INVALID_ARGUMENT, Code.CANCELLED):
                    raise
                print(error, file=sys.stderr)
            await asyncio.sleep(self._pause)
            self._pause = min(self._pause + FIRST_PAUSE, LONGEST_PAUSE)

    async def _follow(self) -> None:
        stream = self._channel.server_stream(
            f"{WORKLOAD_API}/FetchX509SVID",
            workload_pb2.X509SVIDRequest(),
            workload_pb2.X509SVIDResponse,
            metadata=HEADER,
        )
        async with aclosing(stream):
            async for response in stream:
                self._show(response)

    def _show(self, response: workload_pb2.X509SVIDResponse) -> None:
        from agent.cli import svids

        try:
            found = svids.read(response)
        except SpireError as error:
            print(error, file=sys.stderr)
            return
        self._pause = FIRST_PAUSE
        now = time.monotonic()
        svids.print_all(found, timedelta(seconds=now - self._updated), hints=False, names=True)
        sys.stdout.flush()
        self._updated = now
