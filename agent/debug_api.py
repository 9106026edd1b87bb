"""spire.agent.debug.v1.Debug on the admin socket: what the agent is, and how much it keeps."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Final

from agent.manager import Manager
from generated.spire.api.agent.debug.v1 import debug_pb2
from identity import described
from operations import logs
from operations.errors import SpireError
from operations.telemetry import uptime
from transport.peer import Peer
from transport.router import Context, Router
from transport.status import Code, RpcError

MAX_AGE: Final = 5.0
"""Seconds for which an answer is given again."""

_log = logs.get("debug_api")


class DebugService:
    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._answer: debug_pb2.GetInfoResponse | None = None
        self._answered_at = 0.0

    def add_to(self, router: Router) -> None:
        router.add(debug_pb2.DESCRIPTOR.services_by_name["Debug"], {"GetInfo": self.get_info})

    async def get_info(
        self, _request: debug_pb2.GetInfoRequest, _peer: Peer, _context: Context
    ) -> debug_pb2.GetInfoResponse:
        now = time.monotonic()
        if self._answer is None or now - self._answered_at >= MAX_AGE:
            self._answer = self._look()
            self._answered_at = now
        return self._answer

    def _look(self) -> debug_pb2.GetInfoResponse:
        manager = self._manager
        answer = debug_pb2.GetInfoResponse(
            uptime=int(uptime()),
            svids_count=manager.cache.svid_count,
            cached_x509_svids_count=manager.cache.svid_count,
            cached_svidstore_x509_svids_count=0 if manager.to_store is None else manager.to_store.svid_count,
            cached_jwt_svids_count=manager.jwt_svid_count,
            last_sync_success=int(manager.last_sync),
        )
        bundle = manager.cache.bundle
        roots = {bundle.trust_domain: [authority.der for authority in bundle.x509_authorities]}
        try:
            chain = described.describe(manager.svid.chain, roots, datetime.now(UTC))
        except SpireError as error:
            _log.error("Failed to verify agent SVID", error=error)
            raise RpcError(Code.INTERNAL, f"failed to verify agent SVID: {error}") from error
        for certificate in chain:
            shown = answer.svid_chain.add(expires_at=certificate.expires_at, subject=certificate.subject)
            if certificate.spiffe_id is not None:
                shown.id.trust_domain = certificate.spiffe_id.trust_domain.name
                shown.id.path = certificate.spiffe_id.path
        return answer
