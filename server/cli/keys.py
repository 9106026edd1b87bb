"""`spire-server keys list|show|verify|dispose`."""

from __future__ import annotations

from operations import keys_commands
from operations.flags import FlagSet, Run
from server.cli.client import calling


def list_all(flags: FlagSet) -> Run:
    return keys_commands.list_all(flags, calling)


def show(flags: FlagSet) -> Run:
    return keys_commands.show(flags, calling)


def verify(flags: FlagSet) -> Run:
    return keys_commands.verify(flags, calling)


def dispose(flags: FlagSet) -> Run:
    return keys_commands.dispose(flags, calling)
