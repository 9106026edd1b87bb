"""`spire-agent`: the tree of its commands. A command's module is imported only when the command is used."""

from __future__ import annotations

from collections.abc import Callable

from operations import program
from operations.flags import Command, FlagSet, Program, Run
from operations.version import VERSION


def main() -> None:
    """Run the command that the process was started with."""
    program.main(Program("spire-agent", VERSION, COMMANDS, GROUPS))


def _in(module: str, function: str) -> Callable[[FlagSet], Run]:
    return program.lazily(f"agent.cli.{module}", function)


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
    Command("logger get", "Print the log's level, and that of the start", _in("logger", "get")),
    Command("logger set", "Change the log's level until the agent ends", _in("logger", "set_level")),
    Command("logger reset", "Give the log the level of the start", _in("logger", "reset")),
    Command("debug getinfo", "Print what the agent is and how much it keeps", _in("debug", "get_info")),
    Command("keys list", "Print all keys, those that nobody uses any more among them", _in("keys", "list_all")),
    Command("keys show", "Print all that is known of one key", _in("keys", "show")),
    Command("keys verify", "Have keys prove that they are here and cannot leave", _in("keys", "verify")),
    Command("keys dispose", "Destroy a key that nobody uses", _in("keys", "dispose")),
    Command("tpm evidence", "Write down what this machine's TPM and logs say of its boot", _in("tpm", "evidence")),
    Command(
        "tpm devid provision", "Make a DevID's key in the TPM, and ask for its certificate", _in("devid", "provision")
    ),
    Command("api watch", WATCH, _in("watch", "watch"), usage_name="watch", complaint="{}"),
)

GROUPS = {
    "api": "Ask the Workload API, as a workload would",
    "api validate": "Check what others present: jwt",
    "debug": "A look into the running agent, by its admin socket",
    "keys": "The agent's own keys, by its admin socket",
    "logger": "The running agent's log, by its admin socket",
    "tpm": "The machine's TPM",
    "tpm devid": "DevIDs: identities whose keys are in the TPM",
}


if __name__ == "__main__":
    main()
