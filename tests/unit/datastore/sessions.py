"""Sessions of a store on PostgreSQL, seen from outside."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from tests.simulators.postgres import Cluster

PATIENCE = 60.0


async def eventually(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, what
        await asyncio.sleep(0.05)


def name_of(connection_string: str) -> str:
    return connection_string.rpartition("dbname=")[2]


def end_sessions(cluster: Cluster, connection_string: str) -> int:
    """Kill the store's sessions; how many they were."""
    with cluster.connect() as connection:
        killed = connection.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s",
            (name_of(connection_string),),
        ).fetchall()
    return len(killed)
