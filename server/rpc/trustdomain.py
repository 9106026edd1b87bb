"""spire.api.server.trustdomain.v1.TrustDomain: whom this trust domain federates with, and where their bundles are."""

from __future__ import annotations

import asyncio

from google.protobuf import empty_pb2

from generated.spire.api.server.trustdomain.v1 import trustdomain_pb2 as api
from generated.spire.api.types import federationrelationship_pb2 as types
from generated.spire.api.types import status_pb2
from identity.spiffeid import SpiffeId, TrustDomain
from operations.errors import InvalidArgument, NotFound, SpireError
from operations.logs import Logger
from server.datastore.federation import ALL_FIELDS, FederationRelationship
from server.datastore.store import DataStore
from server.federation.following import Following
from server.rpc import masks
from server.rpc.call import Call
from server.rpc.failures import code_of, code_of_store, failed, failing, failure, ok
from server.rpc.federation_messages import audit_fields, relationship_from_proto, relationship_to_proto
from server.rpc.pacing import paced
from server.trust import TrustBundles
from transport.peer import Peer
from transport.router import Context, Handler
from transport.status import Code

Outcome = tuple[status_pb2.Status, FederationRelationship | None]


class TrustDomainService:
    DESCRIPTOR = api.DESCRIPTOR.services_by_name["TrustDomain"]

    def __init__(
        self, trust_domain: TrustDomain, store: DataStore, bundles: TrustBundles, following: Following
    ) -> None:
        self._trust_domain = trust_domain
        self._store = store
        self._bundles = bundles
        self._following = following

    def handlers(self) -> dict[str, Handler]:
        return {
            "ListFederationRelationships": self.list,
            "GetFederationRelationship": self.get,
            "BatchCreateFederationRelationship": self.create,
            "BatchUpdateFederationRelationship": self.update,
            "BatchDeleteFederationRelationship": self.delete,
            "RefreshBundle": self.refresh,
        }

    async def list(
        self, request: api.ListFederationRelationshipsRequest, _peer: Peer, context: Context
    ) -> api.ListFederationRelationshipsResponse:
        call = Call.of(context)
        size = max(request.page_size, 0)
        with failing(call.log, "failed to list federation relationships", of=code_of_store):
            page = await self._store.list_federation_relationships(
                page_size=size, page_token=request.page_token if size else ""
            )
        mask = _mask(request)
        call.succeeded()
        found = await paced(lambda each: relationship_to_proto(each, mask), page.items)
        return api.ListFederationRelationshipsResponse(federation_relationships=found, next_page_token=page.next_token)

    async def get(
        self, request: api.GetFederationRelationshipRequest, _peer: Peer, context: Context
    ) -> types.FederationRelationship:
        call = Call.of(context)
        call.note(trust_domain_id=request.trust_domain)
        with failing(call.log, "failed to parse trust domain", Code.INVALID_ARGUMENT):
            trust_domain = TrustDomain.parse(request.trust_domain)
        with failing(call.log, "failed to fetch federation relationship"):
            found = await self._store.get_federation_relationship(trust_domain)
        if found is None:
            raise failure(call.log, Code.NOT_FOUND, "federation relationship does not exist")
        call.succeeded()
        return relationship_to_proto(found, _mask(request))

    async def create(
        self, request: api.BatchCreateFederationRelationshipRequest, _peer: Peer, context: Context
    ) -> api.BatchCreateFederationRelationshipResponse:
        call = Call.of(context)
        response = api.BatchCreateFederationRelationshipResponse()
        for message in request.federation_relationships:
            status, made = await self._create(message, call.log.bind(trust_domain_id=message.trust_domain))
            result = response.results.add(status=status)
            if made is not None:
                result.federation_relationship.CopyFrom(relationship_to_proto(made, _mask(request)))
            _audit(call, status, message)
            await asyncio.sleep(0)
        return response

    async def _create(self, message: types.FederationRelationship, log: Logger) -> Outcome:
        try:
            wanted = await relationship_from_proto(message)
        except InvalidArgument as error:
            return failed(log, Code.INVALID_ARGUMENT, "failed to convert federation relationship", error), None
        if wanted.trust_domain == self._trust_domain:
            text = "unable to create federation relationship for server trust domain"
            return failed(log, Code.INVALID_ARGUMENT, text), None
        try:
            made = await self._store.create_federation_relationship(wanted)
        except SpireError as error:
            return failed(log, code_of_store(error), "failed to create federation relationship", error), None
        await self._warn_of_missing_bundle(made, log)
        log.debug("Federation relationship created")
        self._following.changed()
        return ok(), made

    async def update(
        self, request: api.BatchUpdateFederationRelationshipRequest, _peer: Peer, context: Context
    ) -> api.BatchUpdateFederationRelationshipResponse:
        call = Call.of(context)
        mask = request.input_mask if request.HasField("input_mask") else None
        response = api.BatchUpdateFederationRelationshipResponse()
        for message in request.federation_relationships:
            status, changed = await self._update(message, mask, call.log.bind(trust_domain_id=message.trust_domain))
            result = response.results.add(status=status)
            if changed is not None:
                result.federation_relationship.CopyFrom(relationship_to_proto(changed, _mask(request)))
            _audit(call, status, message, mask)
            await asyncio.sleep(0)
        return response

    async def _update(
        self, message: types.FederationRelationship, mask: types.FederationRelationshipMask | None, log: Logger
    ) -> Outcome:
        try:
            wanted = await relationship_from_proto(message)
        except InvalidArgument as error:
            return failed(log, Code.INVALID_ARGUMENT, "failed to convert federation relationship", error), None
        fields = ALL_FIELDS if mask is None else ALL_FIELDS & masks.names(mask)
        try:
            changed = await self._store.update_federation_relationship(wanted, fields)
        except NotFound as error:
            return failed(log, Code.NOT_FOUND, str(error)), None
        except SpireError as error:
            return failed(log, code_of(error), "failed to update federation relationship", error), None
        await self._warn_of_missing_bundle(changed, log)
        log.debug("Federation relationship updated")
        self._following.changed()
        return ok(), changed

    async def delete(
        self, request: api.BatchDeleteFederationRelationshipRequest, _peer: Peer, context: Context
    ) -> api.BatchDeleteFederationRelationshipResponse:
        call = Call.of(context)
        response = api.BatchDeleteFederationRelationshipResponse()
        for asked in request.trust_domains:
            name, status = await self._delete(asked, call.log)
            response.results.add(trust_domain=name, status=status)
            if call.audit is not None:
                call.audit.item(status.code, status.message, trust_domain_id=asked)
            await asyncio.sleep(0)
        return response

    async def _delete(self, asked: str, log: Logger) -> tuple[str, status_pb2.Status]:
        """The trust domain's name, where it is one, and what came of it."""
        if not asked:
            return asked, failed(log, Code.INVALID_ARGUMENT, "missing trust domain")
        log = log.bind(trust_domain_id=asked)
        try:
            trust_domain = TrustDomain.parse(asked)
        except InvalidArgument as error:
            return asked, failed(log, Code.INVALID_ARGUMENT, "failed to parse trust domain", error)
        try:
            await self._store.delete_federation_relationship(trust_domain)
        except NotFound as error:
            return trust_domain.name, failed(log, Code.NOT_FOUND, str(error))
        except SpireError as error:
            return trust_domain.name, failed(log, code_of(error), "failed to delete federation relationship", error)
        log.debug("Federation relationship deleted")
        self._following.changed()
        return trust_domain.name, ok()

    async def refresh(self, request: api.RefreshBundleRequest, _peer: Peer, context: Context) -> empty_pb2.Empty:
        """Answers when the bundle is there, or cannot be had."""
        call = Call.of(context)
        with failing(call.log, "failed to parse trust domain", Code.INVALID_ARGUMENT):
            trust_domain = TrustDomain.parse(request.trust_domain)
        log = call.log.bind(trust_domain_id=trust_domain.name)
        call.note(trust_domain_id=request.trust_domain)
        with failing(log, "failed to refresh bundle", Code.INTERNAL):
            known = await self._following.refresh(trust_domain)
        if not known:
            raise failure(log, Code.NOT_FOUND, f'no relationship with trust domain "{trust_domain}"')
        log.debug("Bundle refreshed")
        call.succeeded()
        return empty_pb2.Empty()

    async def _warn_of_missing_bundle(self, relationship: FederationRelationship, log: Logger) -> None:
        """An endpoint that proves itself by an X509-SVID can only be asked by who has its trust domain's bundle."""
        if relationship.bundle is not None or not relationship.endpoint_spiffe_id:
            return
        log = log.bind(endpoint_spiffe_id=relationship.endpoint_spiffe_id)
        endpoint = SpiffeId.parse(relationship.endpoint_spiffe_id)
        try:
            bundle = await self._bundles.get(endpoint.trust_domain)
        except SpireError as error:
            text = "failed to check whether a bundle exists for the endpoint SPIFFE ID trust domain"
            log.warning(text, error=error)
            return
        if bundle is None:
            log.warning("bundle not found for the endpoint SPIFFE ID trust domain")


def _mask(
    request: api.ListFederationRelationshipsRequest
    | api.GetFederationRelationshipRequest
    | api.BatchCreateFederationRelationshipRequest
    | api.BatchUpdateFederationRelationshipRequest,
) -> types.FederationRelationshipMask | None:
    return request.output_mask if request.HasField("output_mask") else None


def _audit(
    call: Call,
    status: status_pb2.Status,
    message: types.FederationRelationship,
    mask: types.FederationRelationshipMask | None = None,
) -> None:
    if call.audit is not None:
        call.audit.item(status.code, status.message, **audit_fields(message, mask))
