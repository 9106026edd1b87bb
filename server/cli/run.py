"""`spire-server run` and `validate`. What is given on the command line wins over the configuration file."""

from __future__ import annotations

import asyncio
import sys

from operations.errors import ConfigurationError, ConfigurationErrors, SpireError, raise_problems
from operations.flags import FlagSet, Run
from server.config import ServerConfig, declare_flags


def run(flags: FlagSet) -> Run:
    read = declare_flags(flags)

    def start(_: list[str]) -> int:
        try:
            config = read()
        except SpireError as error:
            print(error, file=sys.stderr)
            return 1
        from server.run import run as serve

        return asyncio.run(serve(config))

    return start


def validate(flags: FlagSet) -> Run:
    read = declare_flags(flags, also=_check_more)

    def check(_: list[str]) -> int:
        try:
            config = read()
        except ConfigurationErrors as error:
            print("SPIRE server configuration file is invalid.\nValidation errors:", file=sys.stderr)
            for problem in error.problems:
                print(f"\t{problem}", file=sys.stderr)
            return 1
        except SpireError as error:
            print(f"SPIRE server configuration file is invalid: {error}", file=sys.stderr)
            return 1
        for line in config.warnings:
            print(f"warning: {line}", file=sys.stderr)
        print("SPIRE server configuration file is valid.")
        return 0

    return check


def _check_more(config: ServerConfig) -> None:
    """Plugins, and the files that are named."""
    problems: list[ConfigurationError] = []
    for check in (_check_plugins, _check_serving_files):
        try:
            check(config)
        except ConfigurationErrors as errors:
            problems.extend(errors.problems)
        except ConfigurationError as error:
            problems.append(error)
    raise_problems(problems)


def _check_plugins(config: ServerConfig) -> None:
    from server import catalog  # imports the datastore, which a server that runs imports later

    catalog.check(config, files=True)
    if config.policy is not None:
        from server.policy.rules import RegoPolicy

        asyncio.run(RegoPolicy.check(config.policy))
    if any(block.enabled and block.command is not None for block in config.plugins):
        raise_problems(asyncio.run(catalog.validate_external(config)))


def _check_serving_files(config: ServerConfig) -> None:
    endpoint = config.federation.bundle_endpoint
    if endpoint is None:
        return
    from server.config.federation import ServingFiles

    if isinstance(endpoint.profile, ServingFiles):
        from transport import serving_files

        paths = endpoint.profile.cert_file_path, endpoint.profile.key_file_path
        try:
            serving_files.identity_of(serving_files.read(*paths), *paths)
        except ConfigurationError as error:
            raise ConfigurationError(f"federation.bundle_endpoint: {error.reason}", file=config.file) from error
