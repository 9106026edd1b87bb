"""The external plugins of a program, from their blocks in its configuration to their end.

This module is there for every program; what runs a plugin is imported when the first one is loaded.
"""

from __future__ import annotations

import asyncio
import importlib
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from google.protobuf.descriptor import ServiceDescriptor

from operations import logs, signals
from operations.errors import ConfigurationError, PermanentlyUnusable, SpireError
from operations.quoting import quote
from plugins.blocks import PluginBlock
from transport.router import Handler

if TYPE_CHECKING:
    from operations.logs import Logger
    from plugins.external.plugin import Plugin

CONFIG_SERVICE = "spire.service.common.config.v1.Config"

HostService = tuple[ServiceDescriptor, Mapping[str, Handler]]
"""A service that the program offers to its plugins, with its handlers by method."""

Facades = Mapping[str, str]
"""What stands for an external plugin, by its type: `module:attribute` of a `Facade`."""


class Facade(Protocol):
    """A class that makes a plugin of ours of one that serves the gRPC service `SERVICE`."""

    SERVICE: str

    def __call__(self, plugin: Plugin) -> Any: ...


def check(block: PluginBlock, facades: Facades) -> None:
    """Raises ConfigurationError, with its place, for a plugin that cannot be started."""
    from plugins.external.executable import Executable

    if block.type not in facades:
        known = ", ".join(sorted(facades)) or "none"
        raise block.error(
            f"external plugins (plugin_cmd) of this type are not available in this version: use a built-in one "
            f"(external ones may be: {known})"
        )
    try:
        Executable.of(block.command or "", block.checksum).check()
    except ConfigurationError as error:
        raise block.error(error.reason) from error


async def load(block: PluginBlock, plugins: ExternalPlugins | None, trust_domain: str) -> Any:
    """The plugin of an external block; raises ConfigurationError, with its place, where there can be none."""
    if plugins is None:
        raise block.error("external plugins (plugin_cmd) are not available here: use a built-in one")
    check(block, plugins.facades)
    return await plugins.load(block, trust_domain)


async def validate(
    blocks: Sequence[PluginBlock],
    facades: Facades,
    host_services: Callable[[], Sequence[HostService]],
    trust_domain: str,
) -> Sequence[ConfigurationError]:
    """What the enabled external plugins find wrong with their configuration, with its place, as `validate` tells it.

    Each is started, asked, and ended. One that cannot be started is such a finding too.
    """
    plugins = ExternalPlugins(facades, host_services)
    found: list[ConfigurationError] = []
    for block in blocks:
        if block.enabled and block.command is not None:
            try:
                check(block, facades)
                found.extend(block.error(note) for note in await plugins.validate(block, trust_domain))
            except ConfigurationError as error:
                found.append(error)
    return found


class ExternalPlugins:
    """`host_services` is asked once for each plugin that is loaded."""

    def __init__(self, facades: Facades, host_services: Callable[[], Sequence[HostService]]) -> None:
        self.facades = facades
        self._host_services = host_services
        self._running: list[Plugin] = []
        self._reconfiguring: asyncio.Task[None] | None = None
        self._leave: Callable[[], None] = lambda: None

    async def load(self, block: PluginBlock, trust_domain: str) -> Any:
        """Start, introduce and configure a plugin; the facade of its type. Raises ConfigurationError with its place."""
        log = logs.get("catalog").bind(external=True, plugin_name=block.name, plugin_type=block.type)
        plugin = await self._start(block, trust_domain, log)
        try:
            facade = self._bind(plugin)
            await self._configure(plugin)
        except BaseException:
            await self._end(plugin)
            raise
        log.info("Plugin loaded")
        return facade

    async def validate(self, block: PluginBlock, trust_domain: str) -> Sequence[str]:
        """What a plugin says of its configuration, which is not put in force. Raises ConfigurationError."""
        log = logs.get("catalog").bind(external=True, plugin_name=block.name, plugin_type=block.type)
        plugin = await self._start(block, trust_domain, log)
        try:
            self._bind(plugin)
            return await plugin.validate()
        finally:
            await self._end(plugin)

    async def _start(self, block: PluginBlock, trust_domain: str, log: Logger) -> Plugin:
        from plugins.external.plugin import Plugin

        try:
            plugin = await Plugin.start(block, trust_domain, self._host_services(), log)
        except SpireError as error:
            raise _failure("failed to load plugin", block, error, log) from error
        self._running.append(plugin)
        return plugin

    def _bind(self, plugin: Plugin) -> Any:
        module, _, attribute = self.facades[plugin.type].partition(":")
        facade: Facade = getattr(importlib.import_module(module), attribute)
        if facade.SERVICE not in plugin.services:
            found = " ".join(map(quote, sorted(plugin.services)))
            error = PermanentlyUnusable(f"no supported plugin interface found in: [{found}]: expected {facade.SERVICE}")
            raise _failure("failed to bind plugin", plugin.block, error, plugin.log)
        for service in sorted(plugin.services - {facade.SERVICE, CONFIG_SERVICE}):
            plugin.log.warning("Unsupported plugin service found", plugin_service=service)
        return facade(plugin)

    async def _configure(self, plugin: Plugin) -> None:
        try:
            await plugin.configure()
        except SpireError as error:
            raise _failure("failed to configure plugin", plugin.block, error, plugin.log) from error

    def reconfigure_on_signal(self) -> None:
        """From now on SIGUSR1 makes the plugins with a plugin_data_file look at it again, as in SPIRE."""
        self._leave = signals.listen(signal.SIGUSR1, self._on_signal)

    def _on_signal(self) -> None:
        logs.get("reconfigurer").info("Reconfigure signal received")
        before = self._reconfiguring
        self._reconfiguring = asyncio.create_task(self._reconfigure(before))

    async def _reconfigure(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        await self.reconfigure()

    async def reconfigure(self) -> None:
        """One plugin after the other, in the order in which they were loaded."""
        for plugin in tuple(self._running):
            await plugin.reconfigure()

    async def close(self) -> None:
        """End the plugins, the last one first."""
        self._leave()
        if self._reconfiguring is not None:
            self._reconfiguring.cancel()
            await asyncio.wait([self._reconfiguring])
        while self._running:
            await self._end(self._running[-1])

    async def _end(self, plugin: Plugin) -> None:
        try:
            await plugin.close()
        finally:
            self._running.remove(plugin)


def _failure(what: str, block: PluginBlock, error: SpireError, log: Logger) -> ConfigurationError:
    log.error(what.capitalize(), error=error)
    return block.position.error(f"{block}: {what} {quote(block.name)}: {error}")
