"""The flags of `run` and `validate`."""

from __future__ import annotations

from collections.abc import Callable

from operations.flags import FlagSet
from server.config.settings import DEFAULT_PATH, Overrides, ServerConfig, load


def declare_flags(flags: FlagSet, also: Callable[[ServerConfig], None] | None = None) -> Callable[[], ServerConfig]:
    """Declare the flags; after they were parsed, the result loads the configuration they ask for, as `load` does."""
    bind_address = flags.string("bindAddress", "", "Address on which agents are served, e.g. 0.0.0.0")
    bind_port = flags.integer("serverPort", 0, "TCP port on which agents are served, e.g. 8081 (bind_port in the file)")
    usage = f"Configuration file, {DEFAULT_PATH} when unset; the other flags win over what it says"
    path = flags.string("config", "", usage)
    data_dir = flags.string("dataDir", "", "Folder for what must outlast a restart")
    log_file = flags.string("logFile", "", "Append the log to this file; SIGUSR2 opens it anew")
    log_format = flags.string("logFormat", "", "text or json")
    log_source = flags.boolean("logSourceLocation", "Add file, line and function to each line of the log")
    log_level = flags.string("logLevel", "", "error, warn, info or debug")
    trust_domain = flags.string("trustDomain", "", "Trust domain of every identity issued here, e.g. example.org")
    expand_env = flags.boolean(
        "expandEnv", "Put environment variables in for $NAME and ${NAME} in the file; $$ is a dollar"
    )
    socket_path = flags.string(
        "socketPath", "", "Where commands connect: the path of the admin socket that the server makes"
    )

    def read() -> ServerConfig:
        overrides = Overrides(
            bind_address=bind_address.value,
            bind_port=bind_port.value,
            data_dir=data_dir.value,
            log_file=log_file.value,
            log_format=log_format.value,
            log_level=log_level.value,
            log_source_location=log_source.value,
            socket_path=socket_path.value,
            trust_domain=trust_domain.value,
        )
        return load(path.value, overrides, expand_env=expand_env.value, also=also)

    return read
