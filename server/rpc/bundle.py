"""spire.api.server.bundle.v1.Bundle: the trust domain's own bundle. Federated bundles come with federation."""

from __future__ import annotations

from generated.spire.api.server.bundle.v1 import bundle_pb2 as api
from generated.spire.api.types import bundle_pb2
from identity.spiffeid import TrustDomain
from server.datastore.store import DataStore
from server.rpc import masks
from server.rpc.call import Call
from server.rpc.failures import failing, failure
from server.trust import TrustBundles
from transport.peer import Peer
from transport.router import Context, Handler
from transport.status import Code


class BundleService:
    DESCRIPTOR = api.DESCRIPTOR.services_by_name["Bundle"]

    def __init__(self, trust_domain: TrustDomain, store: DataStore, bundles: TrustBundles) -> None:
        self._trust_domain = trust_domain
        self._store = store
        self._bundles = bundles

    def handlers(self) -> dict[str, Handler]:
        return {"GetBundle": self.get, "CountBundles": self.count}

    async def get(self, request: api.GetBundleRequest, _peer: Peer, context: Context) -> bundle_pb2.Bundle:
        call = Call.of(context)
        call.note(trust_domain_id=self._trust_domain.name)
        with failing(call.log, "failed to fetch bundle"):
            bundle = await self._bundles.get(self._trust_domain)
        if bundle is None:
            raise failure(call.log, Code.NOT_FOUND, "bundle not found")
        message = bundle.to_proto()
        masks.apply(message, request.output_mask if request.HasField("output_mask") else None)
        call.succeeded()
        return message

    async def count(self, _request: api.CountBundlesRequest, _peer: Peer, context: Context) -> api.CountBundlesResponse:
        call = Call.of(context)
        with failing(call.log, "failed to count bundles"):
            count = await self._store.count_bundles()
        call.succeeded()
        return api.CountBundlesResponse(count=count)
