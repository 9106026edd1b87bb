"""The load on an agent while its SVIDs rotate: fetches, tokens, streams that come and go, garbage, changed entries."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from generated.spiffe.workload import workload_pb2
from tests.simulators.spire import Server
from tests.soak.workloads import API, HEADER, Tally, connected, fetch_jwt, fetch_x509

NODE = "spiffe://example.org/node"
WORKLOAD = "spiffe://example.org/workload/"
KNOWN = 15.0
"""Seconds until every agent and workload has a bundle: three times what an agent waits between two looks."""


async def every(seconds: float, act: Callable[[], Awaitable[None]]) -> None:
    """One after the other, until cancelled."""
    while True:
        await act()
        await asyncio.sleep(seconds)


async def take_and_drop_streams(socket: str) -> None:
    """Ten streams on one connection; some are cancelled, some never read, and then all are gone."""
    async with connected(socket) as channel:
        streams = [
            channel.server_stream(
                f"{API}FetchX509SVID", workload_pb2.X509SVIDRequest(), workload_pb2.X509SVIDResponse, metadata=HEADER
            )
            for _ in range(10)
        ]
        for stream in streams[:6]:
            await anext(stream)
        for stream in streams[:3]:
            await stream.aclose()


async def send_garbage(socket: str) -> None:
    reader, writer = await asyncio.open_unix_connection(socket)
    writer.write(os.urandom(random.randint(1, 2000)))
    try:
        await writer.drain()
        await reader.read(1000)
    except ConnectionError:
        pass
    finally:
        writer.close()


class Operator:
    """Changes entries while workloads hold their SVIDs, and lets authorities be replaced."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._turn = 0
        self._kinds = itertools.cycle(("x509", "jwt"))

    async def change_entries(self) -> None:
        """A passing entry comes or goes, so that what workloads have changes each time."""
        self._turn += 1
        await asyncio.to_thread(self._change)

    def _change(self) -> None:
        if self._turn % 2:
            self._passing = self._server.create_entry(NODE, f"spiffe://example.org/passing/{self._turn}")
        else:
            self._server.ask("entry", "delete", "-entryID", self._passing)

    async def rotate(self) -> None:
        """An authority of X.509, then one of tokens, as the runbook has it: known everywhere before it signs."""
        kind = next(self._kinds)
        prepared = await asyncio.to_thread(self._server.ask_json, "localauthority", kind, "prepare")
        await asyncio.sleep(KNOWN)
        authority = prepared["prepared_authority"]["authority_id"]
        await asyncio.to_thread(self._server.ask, "localauthority", kind, "activate", "-authorityID", authority)


def load(socket: str, server: Server, tally: Tally) -> list[Coroutine[Any, Any, None]]:
    operator = Operator(server)
    audiences = [f"audience-{number}" for number in range(50)]
    return [
        every(0.05, lambda: fetch_x509(socket, tally)),
        every(0.1, lambda: fetch_jwt(socket, f"{WORKLOAD}0", random.choice(audiences), tally)),
        every(0.5, lambda: take_and_drop_streams(socket)),
        every(1, lambda: send_garbage(socket)),
        every(5, operator.change_entries),
        every(40, operator.rotate),
    ]
