"""`spire-server`: the tree of its commands. A command's module is imported only when the command is used."""

from __future__ import annotations

from collections.abc import Callable

from operations import program
from operations.flags import Command, FlagSet, Program, Run
from operations.version import VERSION


def main() -> None:
    """Run the command that the process was started with."""
    program.main(Program("spire-server", VERSION, COMMANDS, GROUPS))


def _in(module: str, function: str) -> Callable[[FlagSet], Run]:
    return program.lazily(f"server.cli.{module}", function)


COMMANDS = (
    Command("run", "Run the server until it gets SIGTERM or SIGINT", _in("run", "run"), complaint="{}"),
    Command(
        "validate",
        "Check a configuration without starting anything",
        _in("run", "validate"),
        complaint="SPIRE server configuration file is invalid: {}",
    ),
    Command("healthcheck", "Ask a running server whether it serves", _in("healthcheck", "healthcheck")),
    Command(
        "token generate",
        "Make a join token, with which one agent attests once",
        _in("token", "generate"),
        usage_name="generate",
    ),
    Command("entry create", "Add entries: which workload gets which identity", _in("entry", "create")),
    Command("entry update", "Give existing entries new contents", _in("entry", "update")),
    Command("entry delete", "Remove entries by their IDs", _in("entry", "delete")),
    Command("entry show", "Print one entry, or all that match", _in("entry_queries", "show")),
    Command("entry count", "Print how many entries match", _in("entry_queries", "count")),
    Command("bundle show", "Print the bundle by which others trust this server", _in("bundle", "show")),
    Command("agent list", "Print all attested agents that match", _in("agent", "list_all")),
    Command("agent count", "Print how many attested agents match", _in("agent", "count")),
    Command("agent show", "Print one agent, with its selectors", _in("agent", "show")),
    Command("agent evict", "Forget an agent, which must then attest anew", _in("agent", "evict")),
    Command("agent ban", "Shut an agent out until it is evicted", _in("agent", "ban")),
    Command(
        "agent purge",
        "Evict long expired agents that can attest again by themselves",
        _in("agent_purge", "purge"),
    ),
    Command("logger get", "Print the log's level, and that of the start", _in("logger", "get")),
    Command("logger set", "Change the log's level until the server ends", _in("logger", "set_level")),
    Command("logger reset", "Give the log the level of the start", _in("logger", "reset")),
    Command("debug getinfo", "Print what the server is and how much it keeps", _in("debug", "get_info")),
    Command("x509 mint", "Sign an X509-SVID for a new key, without an entry", _in("mint", "x509")),
    Command("jwt mint", "Sign a JWT-SVID, without an entry", _in("mint", "jwt")),
)

GROUPS = {
    "agent": "Attested agents: list, show, evict, ban",
    "bundle": "The trust bundle",
    "debug": "A look into the running server",
    "entry": "Registration entries: create, show, update, delete",
    "jwt": "JWT-SVIDs by hand",
    "logger": "The running server's log",
    "token": "Join tokens",
    "x509": "X509-SVIDs by hand",
}


if __name__ == "__main__":
    main()
