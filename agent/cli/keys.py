"""`spire-agent keys list|show|verify|dispose`."""

from __future__ import annotations

from agent.cli import admin_client
from operations import keys_commands
from operations.errors import TemporarilyUnavailable
from operations.flags import FlagSet, Run
from operations.keys_commands import Act
from transport.status import Code, RpcError


def list_all(flags: FlagSet) -> Run:
    return keys_commands.list_all(flags, calling)


def show(flags: FlagSet) -> Run:
    return keys_commands.show(flags, calling)


def verify(flags: FlagSet) -> Run:
    return keys_commands.verify(flags, calling)


def dispose(flags: FlagSet) -> Run:
    return keys_commands.dispose(flags, calling)


def calling(flags: FlagSet, act: Act) -> Run:
    """As of all commands on the admin socket, which few agents have: who cannot reach it is told how to have one."""
    ask = admin_client.calling(flags, act)

    def run(args: list[str]) -> int:
        try:
            return ask(args)
        except RpcError as error:
            if error.code is not Code.UNAVAILABLE or "dial unix" not in error.message:
                raise
            raise TemporarilyUnavailable(
                f"{error}: an agent has an admin socket where its file sets admin_socket_path; name it with -socketPath"
            ) from error

    return run
