"""`spire-agent run` and `validate`. What is given on the command line wins over the configuration file."""

from __future__ import annotations

import asyncio
import sys

from agent.config import declare_flags
from operations.errors import SpireError, raise_problems
from operations.flags import FlagSet, Run


def run(flags: FlagSet) -> Run:
    read = declare_flags(flags)

    def start(_: list[str]) -> int:
        try:
            config = read()
        except SpireError as error:
            print(error, file=sys.stderr)
            return 1
        from agent.run import run as serve

        return asyncio.run(serve(config))

    return start


def validate(flags: FlagSet) -> Run:
    read = declare_flags(flags)

    def check(_: list[str]) -> int:
        from agent.catalog import BUILTINS, FACADES, validate_external
        from plugins import catalog

        try:
            config = read()
            catalog.check(config.plugins, catalog.AGENT, BUILTINS, config.file, FACADES)
            if any(block.enabled and block.command is not None for block in config.plugins):
                raise_problems(asyncio.run(validate_external(config.plugins, config.trust_domain.name)))
        except SpireError as error:
            print(f"SPIRE agent configuration file is invalid: {error}", file=sys.stderr)
            return 1
        for line in config.warnings:
            print(f"warning: {line}", file=sys.stderr)
        print("SPIRE agent configuration file is valid.")
        return 0

    return check
