"""`spire-server run` and `validate`. What is given on the command line wins over the configuration file."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from operations.errors import SpireError
from operations.flags import Flag, FlagSet, Run

if TYPE_CHECKING:
    from server.config import ServerConfiguration

DEFAULT_CONFIG = "conf/server/server.conf"


class Settings:
    """The flags of `run` and `validate`, which are the same."""

    def __init__(self, flags: FlagSet) -> None:
        self._config = flags.string("config", "", "Path to a SPIRE config file")
        self._expand_env = flags.boolean("expandEnv", "Expand environment variables in SPIRE config file")
        self._overrides: Mapping[str, Flag[str] | Flag[int] | Flag[bool]] = {
            "bind_address": flags.string("bindAddress", "", "IP address or DNS name of the SPIRE server"),
            "bind_port": flags.integer("serverPort", 0, "Port number of the SPIRE server"),
            "data_dir": flags.string("dataDir", "", "Directory to store runtime data to"),
            "log_file": flags.string("logFile", "", "File to write logs to"),
            "log_format": flags.string("logFormat", "", "'text' or 'json'"),
            "log_level": flags.string("logLevel", "", "'debug', 'info', 'warn', or 'error'"),
            "log_source_location": flags.boolean(
                "logSourceLocation", "Include source file, line number and function name in log lines"
            ),
            "socket_path": flags.string("socketPath", "", "Path to bind the SPIRE Server API socket to"),
            "trust_domain": flags.string("trustDomain", "", "The trust domain that this server belongs to"),
        }

    def load(self) -> ServerConfiguration:
        """Raises ConfigurationError."""
        from server import config

        overrides = {name: flag.value for name, flag in self._overrides.items() if flag.value}
        return config.load(self._config.value or DEFAULT_CONFIG, expand_env=self._expand_env.value, overrides=overrides)


def run(flags: FlagSet) -> Run:
    settings = Settings(flags)

    def start(_: list[str]) -> int:
        try:
            configuration = settings.load()
        except SpireError as error:
            print(error, file=sys.stderr)
            return 1
        from server.run import run as run_server

        return asyncio.run(run_server(configuration))

    return start


def validate(flags: FlagSet) -> Run:
    settings = Settings(flags)

    def check(_: list[str]) -> int:
        try:
            settings.load()
        except SpireError as error:
            print(f"SPIRE server configuration file is invalid: {error}", file=sys.stderr)
            return 1
        print("SPIRE server configuration file is valid.")
        return 0

    return check
