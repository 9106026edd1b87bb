"""`spire-server`: the tree of its commands. A command's module is imported only when the command is used."""

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
    program = Program("spire-server", VERSION, COMMANDS)
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
        run: Run = getattr(import_module(f"server.cli.{module}"), function)(flags)
        return run

    return build


COMMANDS = (
    Command("run", "Runs the server", _in("run", "run"), complaint="{}"),
    Command(
        "validate",
        "Validates a SPIRE server configuration file",
        _in("run", "validate"),
        complaint="SPIRE server configuration file is invalid: {}",
    ),
    Command("healthcheck", "Determines server health status", _in("healthcheck", "healthcheck")),
    Command("token generate", "Generates a join token", _in("token", "generate"), usage_name="generate"),
    Command("entry create", "Creates registration entries", _in("entry", "create")),
    Command("entry update", "Updates registration entries", _in("entry", "update")),
    Command("entry delete", "Deletes registration entries", _in("entry", "delete")),
    Command("entry show", "Displays configured registration entries", _in("entry_queries", "show")),
    Command("entry count", "Count registration entries", _in("entry_queries", "count")),
    Command("bundle show", "Prints server CA bundle to stdout", _in("bundle", "show")),
    Command("agent list", "Lists attested agents and their SPIFFE IDs", _in("agent", "list_all")),
    Command("agent count", "Count attested agents", _in("agent", "count")),
    Command("agent show", "Shows the details of an attested agent given its SPIFFE ID", _in("agent", "show")),
    Command("agent evict", "Evicts an attested agent given its SPIFFE ID", _in("agent", "evict")),
    Command("agent ban", "Ban an attested agent given its SPIFFE ID", _in("agent", "ban")),
    Command(
        "agent purge",
        "Purge expired agents that were attested using a non-TOFU security model based on a given time",
        _in("agent_purge", "purge"),
    ),
    Command("x509 mint", "Mints an X509-SVID", _in("mint", "x509")),
    Command("jwt mint", "Mints a JWT-SVID", _in("mint", "jwt")),
)


if __name__ == "__main__":
    main()
