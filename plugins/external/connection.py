"""The way to a plugin: a channel to where it listens, for as long as its process lives."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final

from plugins.external.process import PluginProcess
from transport import dial
from transport.client import Channel
from transport.limits import MIB, Limits
from transport.sockets import Link, PlainLink
from transport.status import RpcError

LIMITS: Final = Limits(message=16 * MIB, stream_window=MIB)
"""What a plugin may make us hold. go-plugin's own host takes messages of 2 GiB; no plugin's answer needs them."""

_CREDENTIALS: Final = struct.Struct("3i")


class PluginDialer:
    """Refuses to connect once the process has ended, and to a socket that is another user's.

    Plugins listen below /tmp: whoever takes a path that the plugin has left must not be taken for it.
    """

    scheme = b"http"
    authority = b"localhost"

    def __init__(self, process: PluginProcess) -> None:
        self._process = process

    async def dial(self) -> tuple[socket.socket, Link]:
        """Raises RpcError, UNAVAILABLE."""
        if self._process.ended.is_set():
            raise dial.connection_error("Error while dialing: the plugin's process has ended")
        where = self._process.address
        if where.network == "tcp":
            return await _dial_tcp(where.address)
        sock, link = await dial.UnixDialer(where.address).dial()
        try:
            check_owner(sock, where.address, self._process.pid)
        except RpcError:
            sock.close()
            raise
        return sock, link


def channel(process: PluginProcess) -> Channel:
    return Channel(PluginDialer(process), None, LIMITS)


def check_owner(sock: socket.socket, path: str, pid: int) -> None:
    """Raises RpcError when neither we, nor root, nor the plugin's user listens at the other end."""
    _, owner, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    trusted = {0, os.geteuid()}
    with suppress(OSError):  # a set-user-ID plugin runs as somebody else
        trusted.add(Path(f"/proc/{pid}").stat().st_uid)
    if owner not in trusted:
        raise dial.connection_error(f"Error while dialing: {path} is a socket of user {owner}, not of the plugin's")


async def _dial_tcp(address: str) -> tuple[socket.socket, Link]:
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(sock, (host.strip("[]"), int(port)))
    except OSError as error:
        sock.close()
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        raise dial.connection_error(f"Error while dialing: dial tcp {address}: connect: {reason}") from error
    except BaseException:
        sock.close()
        raise
    return sock, PlainLink(sock)
