"""spire.api.server.debug.v1.Debug on the private socket: what the server is, and how much it keeps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

from generated.spire.api.server.debug.v1 import debug_pb2
from identity import described
from identity.spiffeid import TrustDomain
from operations.telemetry import uptime
from server.datastore.store import DataStore
from server.rpc.call import Call
from server.rpc.failures import failing, failure
from transport.peer import Peer
from transport.router import Context, Handler
from transport.status import Code

MAX_AGE: Final = 5.0
"""Seconds for which an answer is given again: counting a big datastore costs."""


class DebugService:
    DESCRIPTOR = debug_pb2.DESCRIPTOR.services_by_name["Debug"]

    def __init__(self, trust_domain: TrustDomain, store: DataStore, svid: Callable[[], Sequence[bytes]]) -> None:
        """`svid` gives the chain, DER, of the SVID that the server shows."""
        self._trust_domain = trust_domain
        self._store = store
        self._svid = svid
        self._answer: debug_pb2.GetInfoResponse | None = None
        self._answered_at = 0.0
        self._turn = asyncio.Lock()

    def handlers(self) -> dict[str, Handler]:
        return {"GetInfo": self.get_info}

    async def get_info(
        self, _request: debug_pb2.GetInfoRequest, _peer: Peer, context: Context
    ) -> debug_pb2.GetInfoResponse:
        async with self._turn:
            now = asyncio.get_running_loop().time()
            if self._answer is None or now - self._answered_at >= MAX_AGE:
                self._answer = await self._look(Call.of(context))
                self._answered_at = now
            return self._answer

    async def _look(self, call: Call) -> debug_pb2.GetInfoResponse:
        answer = debug_pb2.GetInfoResponse(uptime=int(uptime()))
        with failing(call.log, "failed to count agents", Code.INTERNAL):
            answer.agents_count = await self._store.count_nodes()
        with failing(call.log, "failed to count entries", Code.INTERNAL):
            answer.entries_count = await self._store.count_entries()
        with failing(call.log, "failed to count bundles", Code.INTERNAL):
            answer.federated_bundles_count = await self._store.count_bundles()
        for certificate in await self._chain(call):
            shown = answer.svid_chain.add(expires_at=certificate.expires_at, subject=certificate.subject)
            if certificate.spiffe_id is not None:
                shown.id.trust_domain = certificate.spiffe_id.trust_domain.name
                shown.id.path = certificate.spiffe_id.path
        return answer

    async def _chain(self, call: Call) -> Sequence[described.Described]:
        with failing(call.log, "failed to fetch trust domain bundle", Code.INTERNAL):
            bundle = await self._store.get_bundle(self._trust_domain)
        if bundle is None:
            raise failure(call.log, Code.NOT_FOUND, "trust domain bundle not found")
        roots = {self._trust_domain: [authority.der for authority in bundle.x509_authorities]}
        with failing(call.log, "failed verification against bundle", Code.INTERNAL):
            return described.describe(self._svid(), roots, datetime.now(UTC))
