"""A process that writes until it is killed, telling each write once the store has acknowledged it.

Run as `python -m tests.contract.datastore_victim <kind> <connection string> <run>`.
"""

from __future__ import annotations

import asyncio
import sys

from server.datastore.backend import Settings
from server.datastore.records import JoinToken
from server.datastore.store import DataStore
from tests.contract.datastore_backends import entry


async def main(kind: str, connection_string: str, run: str) -> None:
    store = await DataStore.open(connection_string, Settings(kind=kind))
    tell("ready")

    async def write(lane: int) -> None:
        number = 0
        while True:
            name = f"{run}-{lane}-{number}"
            await store.create_entry(entry(name, id=name, selectors="a:1 b:2"))
            tell(f"entry {name}")
            await store.create_join_token(JoinToken(name, 100))
            tell(f"token {name}")
            if number % 2:
                tell(f"taking {name}")
                await store.take_join_token(name)
                tell(f"taken {name}")
            number += 1

    await asyncio.gather(*(write(lane) for lane in range(4)))


def tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
