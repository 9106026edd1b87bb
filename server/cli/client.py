"""What every command that asks a running server shares: which socket, and one call after the other on it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine

from operations.errors import InvalidArgument
from operations.flags import FlagSet, Run
from transport.client import Channel

DEFAULT_SOCKET = "/tmp/spire-server/private/api.sock"  # noqa: S108  SPIRE's own default, which scripts rely on
SOCKET = "SPIRE_SERVER_PRIVATE_SOCKET"
TEMPLATE = "SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE"

Act = Callable[[Channel], Coroutine[None, None, None]]
"""What a command does with the server. It raises SpireError to fail."""


def calling(flags: FlagSet, act: Act) -> Run:
    """Declare the flags that name the server's socket; the command then runs `act` with a channel to it."""
    path = flags.string("socketPath", DEFAULT_SOCKET, "The server's admin socket")
    usage = f"Take the socket path from ${TEMPLATE}, with this name for %i. -socketPath wins"
    instance = flags.string("instance", "", usage)

    def run(_: list[str]) -> int:
        asyncio.run(_with_channel(socket_path(path.value, instance.value), act))
        return 0

    return run


def socket_path(path: str, instance: str) -> str:
    """The flag -socketPath wins over -instance, which wins over the environment. Raises InvalidArgument."""
    template = os.environ.get(TEMPLATE, "")
    if instance and not template:
        raise InvalidArgument(f"you must define {TEMPLATE} to use the instance flag")
    if instance and "%i" not in template:
        raise InvalidArgument(f"failed to find %i in {TEMPLATE}")
    if path != DEFAULT_SOCKET:
        return path
    if instance:
        return template.replace("%i", instance)
    return os.environ.get(SOCKET) or DEFAULT_SOCKET


async def _with_channel(path: str, act: Act) -> None:
    channel = Channel.unix(path)
    try:
        await act(channel)
    finally:
        await channel.close()
