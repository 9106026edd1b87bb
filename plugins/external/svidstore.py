"""SVIDStore plugins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from generated.spire.plugin.agent.svidstore.v1 import svidstore_pb2 as api
from plugins.external.plugin import Plugin
from plugins.svidstore import StoredX509Svid

TIMEOUT: Final = 60.0


class ExternalSvidStore:
    SERVICE: Final = "spire.plugin.agent.svidstore.v1.SVIDStore"

    def __init__(self, plugin: Plugin) -> None:
        self._plugin = plugin

    @property
    def name(self) -> str:
        return self._plugin.name

    async def put(self, svid: StoredX509Svid, metadata: Sequence[str]) -> None:
        """Raises RpcError."""
        request = api.PutX509SVIDRequest(
            svid=api.X509SVID(
                spiffeID=svid.spiffe_id,
                cert_chain=svid.chain,
                private_key=svid.private_key,
                bundle=svid.bundle,
                expires_at=svid.expires_at,
            ),
            metadata=metadata,
            federated_bundles={name: b"".join(bundle) for name, bundle in svid.federated_bundles.items()},
        )
        await self._plugin.call(f"/{self.SERVICE}/PutX509SVID", request, api.PutX509SVIDResponse, timeout=TIMEOUT)

    async def delete(self, metadata: Sequence[str]) -> None:
        """Raises RpcError."""
        request = api.DeleteX509SVIDRequest(metadata=metadata)
        await self._plugin.call(f"/{self.SERVICE}/DeleteX509SVID", request, api.DeleteX509SVIDResponse, timeout=TIMEOUT)
