"""`spire-server run` and `validate`. What is given on the command line wins over the configuration file."""

from __future__ import annotations

import asyncio
import sys

from operations.errors import SpireError
from operations.flags import FlagSet, Run
from server.config import declare_flags


def run(flags: FlagSet) -> Run:
    read = declare_flags(flags)

    def start(_: list[str]) -> int:
        try:
            config = read()
        except SpireError as error:
            print(error, file=sys.stderr)
            return 1
        from server.run import run as serve

        return asyncio.run(serve(config))

    return start


def validate(flags: FlagSet) -> Run:
    read = declare_flags(flags)

    def check(_: list[str]) -> int:
        from server import catalog

        try:
            catalog.check(read())
        except SpireError as error:
            print(f"SPIRE server configuration file is invalid: {error}", file=sys.stderr)
            return 1
        print("SPIRE server configuration file is valid.")
        return 0

    return check
