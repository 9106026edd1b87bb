"""`spire-server`: the tree of its commands. A command's module is imported only when the command is used."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from operations import features, program
from operations.flags import Command, FlagSet, Program, Run
from operations.version import VERSION


def main() -> None:
    """Run the command that the process was started with."""
    program.main(Program("spire-server", VERSION, (*COMMANDS, *behind_flags(os.environ.get(FLAGS, ""))), GROUPS))


FLAGS = "SPIRE_SERVER_FFLAGS"
"""The environment variable that turns commands on, by the names of feature flags with blanks between them."""


def behind_flags(flags: str) -> Sequence[Command]:
    """The commands that these feature flags turn on."""
    return WIT_COMMANDS if features.WIT_SVID in flags.split(" ") else ()


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
    Command("bundle list", "Print the bundles of other trust domains", _in("bundle", "list_all")),
    Command("bundle count", "Print how many bundles there are, this server's own among them", _in("bundle", "count")),
    Command("bundle set", "Trust another trust domain by this bundle, new or changed", _in("bundle", "set_one")),
    Command("bundle delete", "Trust another trust domain no more", _in("bundle", "delete")),
    Command("federation create", "Say where other trust domains serve their bundles", _in("federation", "create")),
    Command("federation update", "Give federation relationships new contents", _in("federation", "update")),
    Command("federation delete", "Remove a federation relationship", _in("federation", "delete")),
    Command("federation list", "Print all federation relationships", _in("federation", "list_all")),
    Command("federation show", "Print one federation relationship", _in("federation", "show")),
    Command("federation refresh", "Fetch another trust domain's bundle now", _in("federation", "refresh")),
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
    Command("localauthority x509 show", "Print the X.509 authorities", _in("localauthority", "x509_show")),
    Command(
        "localauthority x509 prepare",
        "Make the next X.509 authority and publish it",
        _in("localauthority", "x509_prepare"),
    ),
    Command(
        "localauthority x509 activate",
        "Sign with the prepared X.509 authority from now on",
        _in("localauthority", "x509_activate"),
    ),
    Command(
        "localauthority x509 taint",
        "Have everything renewed that the old X.509 authority signed",
        _in("localauthority", "x509_taint"),
    ),
    Command(
        "localauthority x509 revoke",
        "Take the tainted X.509 authority out of the bundle",
        _in("localauthority", "x509_revoke"),
    ),
    Command("localauthority jwt show", "Print the JWT authorities", _in("localauthority", "jwt_show")),
    Command(
        "localauthority jwt prepare",
        "Make the next JWT authority and publish it",
        _in("localauthority", "jwt_prepare"),
    ),
    Command(
        "localauthority jwt activate",
        "Sign with the prepared JWT authority from now on",
        _in("localauthority", "jwt_activate"),
    ),
    Command(
        "localauthority jwt taint",
        "Have every JWT-SVID dropped that the old JWT authority signed",
        _in("localauthority", "jwt_taint"),
    ),
    Command(
        "localauthority jwt revoke",
        "Take the tainted JWT authority out of the bundle",
        _in("localauthority", "jwt_revoke"),
    ),
    Command(
        "upstreamauthority taint",
        "Have everything renewed that stands below an upstream authority",
        _in("upstreamauthority", "taint"),
    ),
    Command(
        "upstreamauthority revoke",
        "Take a tainted upstream authority out of the bundle",
        _in("upstreamauthority", "revoke"),
    ),
    Command("logger get", "Print the log's level, and that of the start", _in("logger", "get")),
    Command("logger set", "Change the log's level until the server ends", _in("logger", "set_level")),
    Command("logger reset", "Give the log the level of the start", _in("logger", "reset")),
    Command("debug getinfo", "Print what the server is and how much it keeps", _in("debug", "get_info")),
    Command("keys list", "Print all keys, those that nobody uses any more among them", _in("keys", "list_all")),
    Command("keys show", "Print all that is known of one key", _in("keys", "show")),
    Command("keys verify", "Have keys prove that they are here and cannot leave", _in("keys", "verify")),
    Command("keys dispose", "Destroy a key that nobody uses", _in("keys", "dispose")),
    Command("tpm policy learn", "Make a boot policy of golden machines' evidence", _in("tpm", "learn")),
    Command("tpm policy check", "Try a boot policy on stored evidence", _in("tpm", "check")),
    Command("tpm policy show", "Print what a boot policy asks, or what evidence proves", _in("tpm", "show")),
    Command("x509 mint", "Sign an X509-SVID for a new key, without an entry", _in("mint", "x509")),
    Command("jwt mint", "Sign a JWT-SVID, without an entry", _in("mint", "jwt")),
)

WIT_COMMANDS = (
    Command("localauthority wit show", "Print the WIT authorities", _in("localauthority", "wit_show")),
    Command(
        "localauthority wit prepare",
        "Make the next WIT authority and publish it",
        _in("localauthority", "wit_prepare"),
    ),
    Command(
        "localauthority wit activate",
        "Sign with the prepared WIT authority from now on",
        _in("localauthority", "wit_activate"),
    ),
    Command(
        "localauthority wit taint",
        "Mark the old WIT authority, and what it signed, as not to be trusted",
        _in("localauthority", "wit_taint"),
    ),
    Command(
        "localauthority wit revoke",
        "Take the tainted WIT authority out of the bundle",
        _in("localauthority", "wit_revoke"),
    ),
    Command("wit mint", "Sign a WIT-SVID for a new key, without an entry", _in("wit", "mint")),
)
"""Behind the feature flag wit-svid, as in SPIRE."""

GROUPS = {
    "agent": "Attested agents: list, show, evict, ban",
    "bundle": "Trust bundles: this server's, and those of others",
    "debug": "A look into the running server",
    "entry": "Registration entries: create, show, update, delete",
    "federation": "Where other trust domains serve their bundles",
    "jwt": "JWT-SVIDs by hand",
    "keys": "The key manager's keys: list, show, verify, dispose",
    "localauthority": "Authorities: show, prepare, activate, taint, revoke",
    "localauthority jwt": "JWT authorities",
    "localauthority wit": "WIT authorities",
    "localauthority x509": "X.509 authorities",
    "logger": "The running server's log",
    "token": "Join tokens",
    "tpm": "Nodes with a TPM: their boot policies",
    "tpm policy": "Boot policies: learn, check, show",
    "upstreamauthority": "Upstream authorities: taint, revoke",
    "wit": "WIT-SVIDs by hand",
    "x509": "X509-SVIDs by hand",
}


if __name__ == "__main__":
    main()
