"""`spire-agent`: the tree of its commands. A command's module is imported only when the command is used."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module

from operations import startup
from operations.flags import Command, FlagSet, Program, Run
from operations.version import VERSION

INTERRUPTED = 130
"""128 and the number of SIGINT, as shells report it."""


def main() -> None:
    """Run the command that the process was started with, and end the process with its status."""
    startup.begun()
    program = Program("spire-agent", VERSION, COMMANDS, GROUPS)
    try:
        status = program.run(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BrokenPipeError:
        # The reader has seen enough; the interpreter must not fail at its last flush either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    startup.ended()
    sys.exit(status)


def _in(module: str, function: str) -> Callable[[FlagSet], Run]:
    def build(flags: FlagSet) -> Run:
        run: Run = getattr(import_module(f"agent.cli.{module}"), function)(flags)
        return run

    return build


def _api(name: str, synopsis: str, module: str, function: str, usage_name: str) -> Command:
    build = _in(module, function)
    return Command(name, synopsis, build, usage_name=usage_name, help_note="", complaint="{}")


FETCH_X509 = "Print the X509-SVIDs of the calling process"
WATCH = "Print X509-SVIDs whenever they change, until interrupted"

COMMANDS = (
    Command("run", "Run the agent until it gets SIGTERM or SIGINT", _in("run", "run"), complaint="{}"),
    Command(
        "validate",
        "Check a configuration without starting anything",
        _in("run", "validate"),
        complaint="SPIRE agent configuration file is invalid: {}",
    ),
    Command(
        "healthcheck",
        "Ask a running agent whether it serves",
        _in("healthcheck", "healthcheck"),
        usage_name="health",
        help_note="",
    ),
    _api("api fetch", FETCH_X509, "x509", "fetch", "fetch x509"),
    _api("api fetch x509", FETCH_X509, "x509", "fetch", "fetch x509"),
    _api("api fetch jwt", "Print JWT-SVIDs of the calling process, and the bundles", "jwt", "fetch", "fetch jwt"),
    _api("api validate jwt", "Let the agent check a token, and print what it says", "jwt", "validate", "validate jwt"),
    Command("api watch", WATCH, _in("watch", "watch"), usage_name="watch", complaint="{}"),
)

GROUPS = {
    "api": "Ask the Workload API, as a workload would",
    "api validate": "Check what others present: jwt",
}


if __name__ == "__main__":
    main()
