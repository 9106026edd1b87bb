"""The life of a plugin's process: a socket, the handshake's line, calls, the end with its host."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from operations import logs
from operations.errors import PermanentlyUnusable, SpireError
from plugins.served import hclog, host, services
from plugins.served.handshake import Handshake
from plugins.served.plugin import Plugin
from transport.limits import SERVER_LIMITS, Limits
from transport.router import Router
from transport.server import Server

LIMITS: Final = Limits(connections=16, keepalive=SERVER_LIMITS.keepalive)
_SOCKET_MODE: Final = 0o600
_DRAIN: Final = 0.1  # streams that wait for the end are open in any case
_HOST_FIRST: Final = 1.0  # seconds from SIGTERM
LAST_RESORT: Final = 1.8
"""Seconds from the word to end. go-plugin's hosts kill a plugin after two, and what it started would stay."""


def run(make: Callable[[], Plugin]) -> int:
    """Serve until the host says so, or ends, or on SIGTERM. Returns the status to exit with."""
    parent = os.getppid()
    output = _take_output()
    hclog.setup()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's is for the host, which ends us in its turn
    try:
        asyncio.run(_serve(make(), Handshake.of(os.environ), parent, output))
    except SpireError as error:
        logs.get().error("The plugin cannot be served", error=error)
        return 1
    finally:
        host.end_children()
    return 0


def _take_output() -> int:
    """The pipe for the handshake's line. What libraries print goes to standard error, into the host's log."""
    output = os.dup(1)
    os.dup2(2, 1)
    return output


async def _serve(plugin: Plugin, handshake: Handshake, parent: int, output: int) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def end() -> None:
        if not ended.is_set():
            host.end_after(LAST_RESORT)
            ended.set()

    def host_ended() -> None:
        host.end_after(LAST_RESORT)  # from here: the loop may hang
        if not loop.is_closed():
            loop.call_soon_threadsafe(end)

    # systemd tells all processes of a service at once; a host that is about to say goodbye shall find us.
    loop.add_signal_handler(signal.SIGTERM, loop.call_later, _HOST_FIRST, end)
    try:
        async with _listening(plugin, handshake, end) as line:
            host.watch(parent, output, host_ended)
            os.write(output, line.encode())
            await ended.wait()
    except BrokenPipeError:
        return  # the host is gone
    finally:
        await plugin.close()


@asynccontextmanager
async def _listening(plugin: Plugin, handshake: Handshake, end: Callable[[], None]) -> AsyncGenerator[str, None]:
    """The handshake's line, while calls are served. Raises SpireError classes."""
    router, certificate, context = Router(), "", None
    for service, handlers in (*services.around(plugin, end), *plugin.services()):
        router.add(service, handlers)
    if handshake.client_certificate is not None:
        from plugins.served.mutual_tls import MutualTls  # no host of SPIRE's asks for it

        tls = MutualTls(handshake.client_certificate)
        router.before, certificate, context = tls.check, tls.certificate, tls.context
    try:
        folder = tempfile.mkdtemp(prefix="spire-plugin-", dir=handshake.folder)
    except OSError as error:
        raise PermanentlyUnusable(f"cannot make a folder for the plugin's socket: {error}") from error
    server = Server(router, limits=LIMITS)
    try:
        path = str(Path(folder) / "plugin.sock")
        # The folder is this user's alone: who reaches the socket may call.
        listening = None if context is None else (lambda: context)
        await server.listen_unix(path, mode=_SOCKET_MODE, strangers=True, tls=listening)
        yield handshake.line(path, certificate)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # first: the end may be cut short
        await server.drain(_DRAIN)
