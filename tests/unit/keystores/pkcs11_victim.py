"""A process that rotates keys in a token until it is killed, and tells of each that it was given.

Run as `python -m tests.unit.keystores.pkcs11_victim <JSON of the configuration>`.
"""

from __future__ import annotations

import asyncio
import itertools
import sys

import msgspec

from keystores.pkcs11.configuration import Configuration
from keystores.pkcs11.manager import load_server
from operations import logs
from plugins.catalog import PluginContext
from plugins.keymanager import KeyType

IDS = ("x509-CA-A", "x509-CA-B", "JWT-Signer-A")


async def main(configuration: str) -> None:
    context = PluginContext(trust_domain="example.org", data_dir=None, log=logs.get("pkcs11"))
    manager = await load_server(msgspec.json.decode(configuration, type=Configuration), context)
    for key_id in itertools.cycle(IDS):
        key = await manager.generate(key_id, KeyType.EC_P256)
        sys.stdout.write(f"{key_id} {key.public_key.hex()}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
