"""What this program serves to a plugin, and go-plugin's own services around it."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from google.protobuf import empty_pb2

from generated.plugin import grpc_broker_pb2, grpc_controller_pb2, grpc_stdio_pb2
from operations.errors import PermanentlyUnusable
from operations.logs import Logger
from plugins.external.loading import HostService
from transport.client import Channel
from transport.limits import Limits
from transport.router import Router
from transport.server import Server
from transport.status import Code, RpcError

HOST_SERVICES: Final = 1
"""The number by which the broker knows SPIRE's host services."""

_LIMITS: Final = Limits(connections=16, streams=64)
_SOCKET_MODE: Final = 0o600
_SHUTDOWN_TIMEOUT: Final = 2.0
_DRAIN: Final = 0.5


class Host:
    """Made by `open` before the plugin is told of the services, and closed after the plugin has ended."""

    def __init__(self, channel: Channel, log: Logger) -> None:
        self._channel = channel
        self._log = log
        self._server: Server | None = None
        self._folder: str | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self, services: Sequence[HostService]) -> None:
        """Raises SpireError classes."""
        router = Router()
        for service, handlers in services:
            router.add(service, handlers)
        self._server = Server(router, limits=_LIMITS)
        try:
            self._folder = await asyncio.to_thread(tempfile.mkdtemp, prefix="spire-plugin-")
        except OSError as error:
            raise PermanentlyUnusable(f"cannot make a folder for the host services' socket: {error}") from error
        path = str(Path(self._folder) / "host.sock")
        await self._server.listen_unix(path, mode=_SOCKET_MODE)
        told = asyncio.Event()
        self._tasks = [asyncio.create_task(self._broker(path, told)), asyncio.create_task(self._drain_output())]
        await told.wait()

    async def _broker(self, path: str, told: asyncio.Event) -> None:
        """Tell the plugin of our socket; what it tells of its own is not asked for."""
        try:
            async with self._channel.bidi("/plugin.GRPCBroker/StartStream", grpc_broker_pb2.ConnInfo) as stream:
                await stream.send(grpc_broker_pb2.ConnInfo(service_id=HOST_SERVICES, network="unix", address=path))
                told.set()
                while await stream.recv() is not None:
                    pass
        except RpcError as error:
            if not told.is_set() or error.code is Code.UNIMPLEMENTED:
                self._log.debug("The plugin has no broker for host services", error=error)
        finally:
            told.set()

    async def _drain_output(self) -> None:
        """What a plugin prints is dropped, as SPIRE does; unread it would block the plugin."""
        try:
            async for _ in self._channel.server_stream(
                "/plugin.GRPCStdio/StreamStdio", empty_pb2.Empty(), grpc_stdio_pb2.StdioData
            ):
                pass
        except RpcError as error:
            if error.code is Code.UNIMPLEMENTED:
                self._log.debug("stdio service not available, stdout/stderr syncing unavailable")

    async def shut_plugin(self) -> None:
        """Ask the plugin to end. Its answer may be lost with its connection."""
        with suppress(RpcError):
            await self._channel.unary(
                "/plugin.GRPCController/Shutdown",
                grpc_controller_pb2.Empty(),
                grpc_controller_pb2.Empty,
                timeout=_SHUTDOWN_TIMEOUT,
            )

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.drain(_DRAIN)
        if self._folder is not None:
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
