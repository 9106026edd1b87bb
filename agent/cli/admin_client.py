"""What the commands that ask on the agent's admin socket share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path

from operations.flags import FlagSet, Run
from transport.client import Channel

DEFAULT_SOCKET = "/tmp/spire-agent/private/admin.sock"  # noqa: S108  SPIRE's own default, which scripts rely on

Act = Callable[[Channel], Coroutine[None, None, None]]
"""What a command does with the agent. It raises SpireError to fail."""


def calling(flags: FlagSet, act: Act) -> Run:
    """Declare the flag that names the socket; the command then runs `act` with a channel to it."""
    path = flags.string("socketPath", DEFAULT_SOCKET, "The agent's admin socket (admin_socket_path in its file)")

    async def call(socket: str) -> None:
        async with Channel.unix(socket) as channel:
            await act(channel)

    def run(_: list[str]) -> int:
        asyncio.run(call(str(Path(path.value).absolute())))
        return 0

    return run
