"""`spire-agent`: the tree of its commands. A command's module is imported only when the command is used."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module

from operations.flags import Command, FlagSet, Program, Run
from operations.version import VERSION

INTERRUPTED = 130
"""128 and the number of SIGINT, as shells report it."""


def main() -> None:
    """Run the command that the process was started with, and end the process with its status."""
    program = Program("spire-agent", VERSION, COMMANDS)
    try:
        status = program.run(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BrokenPipeError:
        # The reader has seen enough; the interpreter must not fail at its last flush either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)


def _in(module: str, function: str) -> Callable[[FlagSet], Run]:
    def build(flags: FlagSet) -> Run:
        run: Run = getattr(import_module(f"agent.cli.{module}"), function)(flags)
        return run

    return build


def _api(name: str, synopsis: str, module: str, function: str, usage_name: str) -> Command:
    build = _in(module, function)
    return Command(name, synopsis, build, usage_name=usage_name, help_note="", complaint="{}")


FETCH_X509 = "Fetches X509 SVIDs from the Workload API"
WATCH = "Attaches to the Workload API and prints updates as they're received"

COMMANDS = (
    Command("run", "Runs the agent", _in("run", "run"), complaint="{}"),
    Command(
        "validate",
        "Validates a SPIRE agent configuration file",
        _in("run", "validate"),
        complaint="SPIRE agent configuration file is invalid: {}",
    ),
    Command(
        "healthcheck",
        "Determines agent health status",
        _in("healthcheck", "healthcheck"),
        usage_name="health",
        help_note="",
    ),
    _api("api fetch", FETCH_X509, "x509", "fetch", "fetch x509"),
    _api("api fetch x509", FETCH_X509, "x509", "fetch", "fetch x509"),
    _api("api fetch jwt", "Fetches a JWT SVID from the Workload API", "jwt", "fetch", "fetch jwt"),
    _api("api validate jwt", "Validates a JWT SVID", "jwt", "validate", "validate jwt"),
    Command("api watch", WATCH, _in("watch", "watch"), usage_name="watch", complaint="{}"),
)


if __name__ == "__main__":
    main()
