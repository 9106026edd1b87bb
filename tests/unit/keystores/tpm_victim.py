"""A process that makes keys one after the other, and says of each that it has it, until it is killed."""

from __future__ import annotations

import asyncio
import itertools
import sys
from pathlib import Path

from plugins.keymanager import KeyType
from tests.unit.keystores.tpm_stores import opened


async def main(tcti: str, keys: str) -> None:
    manager = await opened(tcti, Path(keys))
    for number in itertools.count():
        key_id = f"key-{number % 3}"
        key = await manager.generate(key_id, KeyType.EC_P256)
        print(key_id, key.public_key.hex(), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
