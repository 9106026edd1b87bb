"""Notifier plugins."""

from __future__ import annotations

from typing import Final

from generated.spire.plugin.server.notifier.v1 import notifier_pb2 as api
from identity.bundles import Bundle
from plugins.external.bundles import to_plugin
from plugins.external.plugin import Plugin

TIMEOUT: Final = 60.0


class ExternalNotifier:
    SERVICE: Final = "spire.plugin.server.notifier.v1.Notifier"

    def __init__(self, plugin: Plugin) -> None:
        self._plugin = plugin

    @property
    def name(self) -> str:
        return self._plugin.name

    async def bundle_loaded(self, bundle: Bundle) -> None:
        """Raises RpcError."""
        request = api.NotifyAndAdviseRequest(bundle_loaded=api.BundleLoaded(bundle=to_plugin(bundle)))
        await self._plugin.call(
            f"/{self.SERVICE}/NotifyAndAdvise", request, api.NotifyAndAdviseResponse, timeout=TIMEOUT
        )

    async def bundle_updated(self, bundle: Bundle) -> None:
        """Raises RpcError."""
        request = api.NotifyRequest(bundle_updated=api.BundleUpdated(bundle=to_plugin(bundle)))
        await self._plugin.call(f"/{self.SERVICE}/Notify", request, api.NotifyResponse, timeout=TIMEOUT)

    async def close(self) -> None:
        await self._plugin.close()
