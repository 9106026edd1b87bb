"""The flags of `run` and `validate`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from agent.config.settings import DEFAULT_PATH, AgentConfig, Overrides, load
from operations.flags import Flag, FlagSet

_TEXTS = {
    "data_dir": ("dataDir", "Folder for what must outlast a restart"),
    "join_token": (
        "joinToken",
        "Token of spire-server token generate. Others see it in the list of processes: prefer -joinTokenFile",
    ),
    "join_token_file": ("joinTokenFile", "File that holds the join token. Excludes -joinToken"),
    "log_file": ("logFile", "Append the log to this file; SIGUSR2 opens it anew"),
    "log_format": ("logFormat", "text or json"),
    "log_level": ("logLevel", "error, warn, info or debug"),
    "rebootstrap_delay": (
        "rebootstrapDelay",
        "How long a server that is no longer known is waited for, before the bundle is fetched anew, e.g. 10m",
    ),
    "rebootstrap_mode": (
        "rebootstrapMode",
        "Whether to fetch the bundle anew when the server is no longer known: never, auto or always",
    ),
    "server_address": ("serverAddress", "Where the server is: an IP address or a DNS name"),
    "socket_path": ("socketPath", "Where workloads connect: the path of the Unix socket that the agent makes"),
    "trust_bundle_format": ("trustBundleFormat", "Form of the first bundle: pem or spiffe (JWKS)"),
    "trust_bundle_path": (
        "trustBundle",
        "File with the server's bundle, for the first contact. Excludes -trustBundleUrl and -insecureBootstrap",
    ),
    "trust_bundle_url": (
        "trustBundleUrl",
        "https URL of the server's bundle, for the first contact. Excludes -trustBundle and -insecureBootstrap",
    ),
    "trust_domain": ("trustDomain", "Trust domain of the agent and of its server, e.g. example.org"),
}
_SWITCHES = {
    "allow_unauthenticated_verifiers": (
        "allowUnauthenticatedVerifiers",
        "Hand X.509 bundles to processes that have no entry too",
    ),
    "disable_sds_api": ("disableSDSAPI", "Do not serve Envoy's SDS API"),
    "disable_workload_api": (
        "disableWorkloadAPI",
        "Do not serve the SPIFFE Workload API: no X509-SVIDs, JWT-SVIDs or bundles",
    ),
    "insecure_bootstrap": (
        "insecureBootstrap",
        "Believe whichever server answers first. For trials only: an impostor would get through",
    ),
    "log_source_location": ("logSourceLocation", "Add file, line and function to each line of the log"),
}


def declare_flags(flags: FlagSet) -> Callable[[], AgentConfig]:
    """Declare the flags; after they were parsed, the result loads the configuration they ask for."""
    path = flags.string("config", DEFAULT_PATH, "Configuration file; the other flags win over what it says")
    expand_env = flags.boolean(
        "expandEnv", "Put environment variables in for $NAME and ${NAME} in the file; $$ is a dollar"
    )
    server_port = flags.integer("serverPort", 0, "TCP port of the server, e.g. 8081")
    texts: dict[str, Flag[Any]] = {key: flags.string(name, "", usage) for key, (name, usage) in _TEXTS.items()}
    switches: dict[str, Flag[Any]] = {key: flags.boolean(name, usage) for key, (name, usage) in _SWITCHES.items()}

    def read() -> AgentConfig:
        given = {key: flag.value for key, flag in (texts | switches).items()}
        overrides = msgspec.convert({**given, "server_port": server_port.value}, Overrides)
        return load(path.value, overrides, expand_env=expand_env.value)

    return read
