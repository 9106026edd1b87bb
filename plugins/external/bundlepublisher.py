"""BundlePublisher plugins."""

from __future__ import annotations

from typing import Final

from generated.spire.plugin.server.bundlepublisher.v1 import bundlepublisher_pb2 as api
from identity.bundles import Bundle
from plugins.external.bundles import to_plugin
from plugins.external.plugin import Plugin

TIMEOUT: Final = 60.0


class ExternalBundlePublisher:
    SERVICE: Final = "spire.plugin.server.bundlepublisher.v1.BundlePublisher"

    def __init__(self, plugin: Plugin) -> None:
        self._plugin = plugin

    @property
    def name(self) -> str:
        return self._plugin.name

    async def publish(self, bundle: Bundle) -> None:
        """Raises RpcError."""
        request = api.PublishBundleRequest(bundle=to_plugin(bundle))
        await self._plugin.call(f"/{self.SERVICE}/PublishBundle", request, api.PublishBundleResponse, timeout=TIMEOUT)

    async def close(self) -> None:
        await self._plugin.close()
