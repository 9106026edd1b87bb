"""A loaded plugin: what it serves, its configuration, its calls, its end."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

from google.protobuf.message import Message

from generated.spire.service.common.config.v1 import config_pb2
from generated.spire.service.private.init.v1 import init_pb2
from operations.errors import PermanentlyUnusable, SpireError
from operations.logs import Logger
from plugins.blocks import PluginBlock
from plugins.external import connection
from plugins.external.conversation import Conversation
from plugins.external.executable import Executable
from plugins.external.hosting import Host
from plugins.external.loading import CONFIG_SERVICE, HostService
from plugins.external.process import PluginProcess
from transport.status import Code, RpcError

R = TypeVar("R", bound=Message)

INIT_TIMEOUT: Final = 60.0
CONFIGURE_TIMEOUT: Final = 60.0
DEINIT_TIMEOUT: Final = 10.0
"""Seconds. SPIRE waits for the first two without end; a plugin that hangs there is told of, and the start fails."""

_INIT: Final = "/spire.service.private.init.v1.Init/"
_LARGEST_DATA: Final = 16 << 20


class Plugin:
    """Made by `start`; `configure` follows. Its calls' errors carry the plugin's type and name, as SPIRE's do."""

    def __init__(self, block: PluginBlock, trust_domain: str, process: PluginProcess, log: Logger) -> None:
        self.type: Final = block.type
        self.name: Final = block.name
        self._log = log
        self.services: frozenset[str] = frozenset()
        self.block: Final = block
        self._trust_domain = trust_domain
        self._process = process
        self._channel = connection.channel(process)
        self._host = Host(self._channel, log)
        self._hash: str | None = None
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls, block: PluginBlock, trust_domain: str, host_services: Sequence[HostService], log: Logger
    ) -> Plugin:
        """Start the process and introduce the two sides. Raises SpireError classes, and then nothing is left."""
        executable = Executable.of(block.command or "", block.checksum)
        executable.check()
        if executable.checksum is None:
            log.warning("Plugin checksum not configured")
        process = await PluginProcess.start(executable, block.args, block.type, block.name, log)
        plugin = cls(block, trust_domain, process, log)
        try:
            await plugin._introduce(host_services)
        except BaseException:
            await plugin._end()
            raise
        return plugin

    @property
    def log(self) -> Logger:
        """With the plugin's type and name in each line."""
        return self._log

    async def _introduce(self, host_services: Sequence[HostService]) -> None:
        await self._host.open(host_services)
        request = init_pb2.InitRequest(host_service_names=[service.full_name for service, _ in host_services])
        response = await self._channel.unary(f"{_INIT}Init", request, init_pb2.InitResponse, timeout=INIT_TIMEOUT)
        self.services = frozenset(response.plugin_service_names)

    async def configure(self) -> None:
        """Raises SpireError classes."""
        data = await self._data()
        if CONFIG_SERVICE not in self.services:
            if data is not None:
                raise PermanentlyUnusable("no supported configuration interface found")
            return
        await self._configure(data or "")
        dynamic = self.block.data_file is not None
        if dynamic:
            self._hash = _hash(data or "")
            self._log.info("Configured plugin", reconfigurable=True, hash=self._hash)
        else:
            self._log.info("Configured plugin", reconfigurable=False)

    async def reconfigure(self) -> None:
        """Read plugin_data_file again and hand over what has changed; a fault is logged and the old stays in force."""
        if self._hash is None:
            return
        try:
            data = await self._data() or ""
            fresh = _hash(data)
            if fresh == self._hash:
                self._log.info("Plugin not reconfigured since the config is unchanged", hash=fresh)
                return
            await self._configure(data)
        except SpireError as error:
            self._log.error("Failed to reconfigure plugin", error=error)
            return
        self._log.info("Plugin reconfigured", old_hash=self._hash, new_hash=fresh)
        self._hash = fresh

    async def validate(self) -> Sequence[str]:
        """What the plugin finds to say about its configuration, which it does not put in force."""
        try:
            data = await self._data()
        except SpireError as error:
            return [f"failed to read plugin configuration: {error}"]
        if CONFIG_SERVICE not in self.services:
            return []
        request = config_pb2.ValidateRequest(core_configuration=self._core(), hcl_configuration=data or "")
        try:
            response = await self._channel.unary(
                f"/{CONFIG_SERVICE}/Validate", request, config_pb2.ValidateResponse, timeout=CONFIGURE_TIMEOUT
            )
        except RpcError as error:
            return [] if error.code is Code.UNIMPLEMENTED else [str(error)]
        return list(response.notes)

    async def _configure(self, data: str) -> None:
        request = config_pb2.ConfigureRequest(core_configuration=self._core(), hcl_configuration=data)
        await self._channel.unary(
            f"/{CONFIG_SERVICE}/Configure", request, config_pb2.ConfigureResponse, timeout=CONFIGURE_TIMEOUT
        )

    def _core(self) -> config_pb2.CoreConfiguration:
        return config_pb2.CoreConfiguration(trust_domain=self._trust_domain)

    async def _data(self) -> str | None:
        """The text for the plugin; None where the configuration has none."""
        if self.block.data_file is not None:
            return await asyncio.to_thread(_read, self.block.data_file)
        return self.block.data_text

    async def call(
        self,
        path: str,
        request: Message,
        response: type[R],
        *,
        timeout: float | None,  # noqa: ASYNC109 - it is sent to the plugin too
        metadata: Mapping[str, str] | None = None,
    ) -> R:
        """One request, one response. Raises RpcError."""
        try:
            return await self._channel.unary(path, request, response, timeout=timeout, metadata=metadata or {})
        except RpcError as error:
            raise self.wrapped(error) from error

    def converse(self, path: str, response: type[R], *, metadata: Mapping[str, str] | None = None) -> Conversation[R]:
        """A call with streams both ways, not opened yet."""
        return Conversation(self, self._channel.bidi(path, response, metadata=metadata or {}))

    def error(self, code: Code, message: str) -> RpcError:
        """A fault of the plugin's that the plugin did not tell itself."""
        return RpcError(code, f"{self._prefix}{message}")

    def wrapped(self, error: RpcError) -> RpcError:
        """A call's error under the plugin's name."""
        if error.message.startswith(self._prefix):
            return error
        return RpcError(error.code, self._prefix + error.message.removeprefix(f"{self.name}: "), error.details)

    @property
    def _prefix(self) -> str:
        return f"{self.type.lower()}({self.name}): "

    async def close(self) -> None:
        """Let the plugin clean up, then end it. Whoever comes second waits for the first."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self._log.debug("Unloading plugin")
        if not self._process.ended.is_set():
            await self._deinit()
        await self._end()
        self._log.info("Plugin unloaded")

    async def _deinit(self) -> None:
        try:
            await self._channel.unary(
                f"{_INIT}Deinit", init_pb2.DeinitRequest(), init_pb2.DeinitResponse, timeout=DEINIT_TIMEOUT
            )
        except RpcError as error:
            if error.code is not Code.UNIMPLEMENTED:
                self._log.error("Failed to deinitialize plugin", error=error)
                return
        self._log.debug("Plugin deinitialized")

    async def _end(self) -> None:
        await self._host.shut_plugin()
        await self._process.end()
        await self._host.close()
        await self._channel.close()


def _hash(data: str) -> str:
    return hashlib.sha512(data.encode()).digest()[:16].hex()


def _read(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            data = file.read(_LARGEST_DATA + 1)
        if len(data) > _LARGEST_DATA:
            raise PermanentlyUnusable(f"failed to load plugin data: {path} has more than 16 MiB")
        return data.decode()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise PermanentlyUnusable(f"failed to load plugin data: open {path}: {reason}") from error
    except UnicodeDecodeError as error:
        raise PermanentlyUnusable(f"failed to load plugin data: {path} is no UTF-8 text") from error
