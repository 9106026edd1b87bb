"""spire.keys.v1.Keys on the admin socket: which keys the agent has, whether they are what they seem, their end."""

from __future__ import annotations

from collections.abc import Sequence

from agent.manager import Manager
from generated.spire.keys.v1 import keys_pb2 as api
from identity import der
from keystores.inspection import Inspection, Use
from operations import logs
from transport.peer import Peer
from transport.router import Context, Router

_SVID = "agent SVID"

_log = logs.get("keys_api")


class KeysService:
    """An agent gives up its former key by itself, at the next renewal: one that has an id is never withdrawn here."""

    def __init__(self, manager: Manager, name: str) -> None:
        """`name` is that of the key manager's plugin."""
        self._manager = manager
        self._inspection = Inspection(manager.keys, name, self._uses)

    def add_to(self, router: Router) -> None:
        service = api.DESCRIPTOR.services_by_name["Keys"]
        router.add(service, {"ListKeys": self.list, "VerifyKeys": self.verify, "DisposeKey": self.dispose})

    async def list(self, request: api.ListKeysRequest, _peer: Peer, _context: Context) -> api.ListKeysResponse:
        return await self._inspection.list(request.id)

    async def verify(self, request: api.VerifyKeysRequest, _peer: Peer, _context: Context) -> api.VerifyKeysResponse:
        response = await self._inspection.verify(request.id)
        failed = [proof.key.id for proof in response.proofs if not proof.stands]
        if failed:
            _log.warning("Keys failed their proof", key_ids=failed)
        return response

    async def dispose(self, request: api.DisposeKeyRequest, peer: Peer, _context: Context) -> api.DisposeKeyResponse:
        response = await self._inspection.dispose(request.id, request.handle)
        uid = peer.process.uid if peer.process is not None else None
        _log.info("Key disposed of", key_id=response.key.id, key_handle=response.key.handle, caller_uid=uid)
        return response

    def _uses(self) -> Sequence[Use]:
        svid, following = self._manager.svid, self._manager.next_key
        name = str(svid.spiffe_id)
        found = [Use(_SVID, "active", name, svid.key.id, der.certificate_key(svid.chain[0]))]
        if following is not None:
            found.append(Use(_SVID, "prepared", name, following.id, following.public_key))
        return found
