"""Connecting to a Unix socket, however many do so."""

from __future__ import annotations

import asyncio
import random
import socket
from typing import Final

_CROWDED: Final = 0.01


async def connect_unix(path: str) -> socket.socket:
    """A non-blocking socket. The caller sets the deadline. Raises OSError.

    While a listener's queue is full, connecting fails (EAGAIN in unix(7)) and has to be tried anew; the loop's own
    sock_connect takes that for a connection under way.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        while True:
            try:
                sock.connect(path)
            except BlockingIOError:
                await asyncio.sleep(_CROWDED * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
            else:
                return sock
    except BaseException:
        sock.close()
        raise
