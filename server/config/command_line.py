"""The flags of `run` and `validate`."""

from __future__ import annotations

from collections.abc import Callable

from operations.flags import FlagSet
from server.config.settings import Overrides, ServerConfig, load


def declare_flags(flags: FlagSet) -> Callable[[], ServerConfig]:
    """Declare the flags; after they were parsed, the result loads the configuration they ask for."""
    bind_address = flags.string("bindAddress", "", "IP address or DNS name of the SPIRE server")
    bind_port = flags.integer("serverPort", 0, "Port number of the SPIRE server")
    path = flags.string("config", "", "Path to a SPIRE config file")
    data_dir = flags.string("dataDir", "", "Directory to store runtime data to")
    log_file = flags.string("logFile", "", "File to write logs to")
    log_format = flags.string("logFormat", "", "'text' or 'json'")
    log_source = flags.boolean("logSourceLocation", "Include source file, line number and function name in log lines")
    log_level = flags.string("logLevel", "", "'debug', 'info', 'warn', or 'error'")
    trust_domain = flags.string("trustDomain", "", "The trust domain that this server belongs to")
    expand_env = flags.boolean("expandEnv", "Expand environment variables in SPIRE config file")
    socket_path = flags.string("socketPath", "", "Path to bind the SPIRE Server API socket to")

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
        return load(path.value, overrides, expand_env=expand_env.value)

    return read
