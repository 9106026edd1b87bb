"""Figures for the datastore: what is in a table of entries, and what reading and writing it costs this process.

    python -m bench.datastore sqlite3 /tmp/d.sqlite3 100000
    python -m bench.datastore postgres "dbname=spire user=spire host=/run/postgresql" 100000

The database must be a new one, or one that this made. CPU is this process's: of PostgreSQL's there is none in it.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial

from identity.bundles import Bundle
from identity.selectors import Selector
from identity.spiffeid import TrustDomain
from server.datastore.backend import Settings
from server.datastore.records import ByFederatesWith, BySelectors, Entry, EntryFilter, Match
from server.datastore.store import DataStore
from server.entries import EntryIndex

TOGETHER = 500
PAGE = 500


def entry(number: int) -> Entry:
    """Ten parents, a hundred namespaces, one selector of its own, and one that all have."""
    return Entry(
        spiffe_id=f"spiffe://example.org/workload/{number}",
        parent_id=f"spiffe://example.org/alias/{number % 10}",
        selectors=(
            Selector("k8s", f"ns:{number % 100}"),
            Selector("k8s", f"sa:{number}"),
            Selector("unix", "uid:1000"),
        ),
        hint="rare" if number % 1000 == 0 else "",
        federates_with=("other.org",) if number % 10 == 0 else (),
    )


async def measured(name: str, work: Callable[[], Awaitable[object]], times: int = 5, each: int = 1) -> None:
    """Print the best of some runs; `each` is how many things one run does."""
    best = (float("inf"), float("inf"))
    for _ in range(times):
        wall, cpu = time.perf_counter(), time.process_time()
        await work()
        best = min(best, ((time.perf_counter() - wall) / each, (time.process_time() - cpu) / each))
    sys.stdout.write(f"{name:44}{best[0] * 1e3:10.2f} ms{best[1] * 1e3:10.2f} ms CPU\n")
    sys.stdout.flush()


async def main(kind: str, connection_string: str, number: int) -> None:
    store = await DataStore.open(connection_string, Settings(kind=kind))
    await store.set_bundle(Bundle(TrustDomain("other.org")))
    there = await store.count_entries()

    async def fill() -> None:
        for start in range(there, number, TOGETHER):
            await asyncio.gather(*(store.create_entry(entry(n)) for n in range(start, min(start + TOGETHER, number))))

    if there < number:
        await measured("create, 500 at a time, each", fill, 1, number - there)
    late = number * 10 + time.time_ns()

    async def alone() -> None:
        nonlocal late
        for _ in range(100):
            late += 1
            made = await store.create_entry(entry(late))
            await store.delete_entry(made.id)

    await measured("create and delete, alone", alone, 3, 100)
    first = (await store.list_entries(page_size=1)).items[0]
    await measured("get", lambda: store.get_entry(first.id), 20)
    await measured("count", store.count_entries)
    await measured("page of 500", lambda: store.list_entries(page_size=PAGE))
    await measured("page of 500, far behind", lambda: store.list_entries(page_size=PAGE, page_token=str(number - PAGE)))
    filters = {
        "by hint": EntryFilter(hint="rare"),
        "by parent": EntryFilter(parent_id=first.parent_id),
        "by SPIFFE ID": EntryFilter(spiffe_id=first.spiffe_id),
    }
    for match in Match:
        filters[f"by selectors, {match.value}"] = EntryFilter(selectors=BySelectors(first.selectors, match))
        filters[f"by federation, {match.value}"] = EntryFilter(federates_with=ByFederatesWith(("other.org",), match))
    for name, wanted in filters.items():
        await measured(f"page of 500 {name}", partial(store.list_entries, wanted, page_size=PAGE))
    await measured("fill the index", lambda: EntryIndex.follow(store, TrustDomain("example.org")), 1)
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
