"""spire.keys.v1.Keys on the private socket: which keys the server has, whether they are what they seem, their end."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

from generated.spire.keys.v1 import keys_pb2 as api
from identity import der
from keystores.inspection import Inspection, Use
from operations.errors import SpireError
from server.ca.authorities import Authorities
from server.ca.journal import Status
from server.ca.restoring import x509_key_id
from server.rpc.call import Call
from server.rpc.failures import failure
from transport.errors import status_of
from transport.peer import Peer
from transport.router import Context, Handler


class KeysService:
    DESCRIPTOR = api.DESCRIPTOR.services_by_name["Keys"]

    def __init__(self, inspection: Inspection) -> None:
        self._inspection = inspection

    def handlers(self) -> dict[str, Handler]:
        return {"ListKeys": self.list_keys, "VerifyKeys": self.verify_keys, "DisposeKey": self.dispose_key}

    async def list_keys(self, request: api.ListKeysRequest, _peer: Peer, context: Context) -> api.ListKeysResponse:
        with _calling(context, key_id=request.id) as call:
            response = await self._inspection.list(request.id)
            call.succeeded()
            return response

    async def verify_keys(
        self, request: api.VerifyKeysRequest, _peer: Peer, context: Context
    ) -> api.VerifyKeysResponse:
        with _calling(context, key_id=request.id) as call:
            response = await self._inspection.verify(request.id)
            failed = [proof.key.id for proof in response.proofs if not proof.stands]
            if failed:
                call.log.warning("Keys failed their proof", key_ids=failed)
            call.succeeded(keys=len(response.proofs), failed_keys=failed)
            return response

    async def dispose_key(
        self, request: api.DisposeKeyRequest, _peer: Peer, context: Context
    ) -> api.DisposeKeyResponse:
        with _calling(context, key_id=request.id, key_handle=request.handle) as call:
            response = await self._inspection.dispose(request.id, request.handle)
            call.log.info("Key disposed of", key_id=response.key.id, key_handle=response.key.handle)
            call.succeeded(key_id=response.key.id, key_handle=response.key.handle)
            return response


@contextmanager
def _calling(context: Context, **named: str) -> Generator[Call]:
    """The call, with what it names in its audit line. A domain error becomes a status with its whole text."""
    call = Call.of(context)
    fields: dict[str, Any] = {name: value for name, value in named.items() if value}
    call.note(**fields)
    try:
        yield call
    except SpireError as error:
        raise failure(call.log.bind(**fields), status_of(error).code, str(error)) from error


def uses_of(authorities: Authorities) -> Callable[[], Sequence[Use]]:
    """What the server's authorities use keys for, by what the bundle has of them."""

    def uses() -> Sequence[Use]:
        found = [
            Use(
                "X.509 authority",
                status.value,
                x509.authority_id,
                x509_key_id(x509.slot),
                der.certificate_key(x509.certificate),
                giving_way=status is Status.OLD,
            )
            for x509, status in authorities.x509.slots.with_status()
        ]
        found += [
            Use(
                f"{tokens.kind.title} authority",
                status.value,
                signer.authority_id,
                tokens.kind.key_id(signer.slot),
                signer.key.public_key,
                giving_way=status is Status.OLD,
            )
            for tokens in (authorities.jwt, authorities.wit)
            for signer, status in tokens.rotation.slots.with_status()
        ]
        return found

    return uses
