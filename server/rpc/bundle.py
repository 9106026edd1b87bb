"""spire.api.server.bundle.v1.Bundle: the trust domain's own bundle, and those of the domains it federates with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from generated.spire.api.server.bundle.v1 import bundle_pb2 as api
from generated.spire.api.types import bundle_pb2, status_pb2
from identity.bundles import Bundle, JwtAuthority
from identity.spiffeid import TrustDomain
from operations.errors import AlreadyExists, InvalidArgument, NotFound, Refused, SpireError
from operations.logs import Logger
from server.datastore.bundles import ALL_FIELDS
from server.datastore.records import DeleteMode
from server.datastore.store import DataStore
from server.rpc import masks
from server.rpc.bundle_messages import (
    audit_fields,
    bundle_from_proto,
    jwt_authorities_from_proto,
    jwt_authorities_to_proto,
    jwt_authority_fields,
    wit_authorities_from_proto,
    x509_authorities_from_proto,
)
from server.rpc.call import Call
from server.rpc.failures import code_of, code_of_store, failed, failing, failure, ok
from server.rpc.pacing import paced
from server.trust import TrustBundles
from transport.peer import Peer
from transport.router import Context, Handler
from transport.status import Code

_Mode = api.BatchDeleteFederatedBundleRequest
_MODES = {
    _Mode.RESTRICT: DeleteMode.RESTRICT,
    _Mode.DISSOCIATE: DeleteMode.DISSOCIATE,
    _Mode.DELETE: DeleteMode.DELETE,
}


@dataclass(frozen=True, slots=True)
class _Writing:
    """What a batch does with each bundle, in the words of its logs and errors. `mask` names the fields it takes."""

    doing: str
    write: Callable[[Bundle], Awaitable[Bundle]]
    done: str
    failed: str
    mask: bundle_pb2.BundleMask | None = None


Publish = Callable[[JwtAuthority], Awaitable[tuple[JwtAuthority, ...]]]
"""Makes a JWT key known as one of the trust domain's; returns all there are. Raises SpireError."""


class BundleService:
    DESCRIPTOR = api.DESCRIPTOR.services_by_name["Bundle"]

    def __init__(self, trust_domain: TrustDomain, store: DataStore, bundles: TrustBundles, publish: Publish) -> None:
        self._trust_domain = trust_domain
        self._store = store
        self._bundles = bundles
        self._publish = publish

    def handlers(self) -> dict[str, Handler]:
        return {
            "GetBundle": self.get,
            "AppendBundle": self.append,
            "PublishJWTAuthority": self.publish_jwt_authority,
            "PublishWITAuthority": self.publish_wit_authority,
            "CountBundles": self.count,
            "ListFederatedBundles": self.list,
            "GetFederatedBundle": self.get_federated,
            "BatchCreateFederatedBundle": self.create,
            "BatchUpdateFederatedBundle": self.update,
            "BatchSetFederatedBundle": self.set,
            "BatchDeleteFederatedBundle": self.delete,
        }

    # The trust domain's own

    async def get(self, request: api.GetBundleRequest, _peer: Peer, context: Context) -> bundle_pb2.Bundle:
        call = Call.of(context)
        call.note(trust_domain_id=self._trust_domain.name)
        return await self._get(self._trust_domain, call, call.log, _mask(request))

    async def append(self, request: api.AppendBundleRequest, _peer: Peer, context: Context) -> bundle_pb2.Bundle:
        call = Call.of(context)
        log = call.log.bind(trust_domain_id=self._trust_domain.name)
        call.note(**_fields_of_authorities(request))
        if not request.jwt_authorities and not request.x509_authorities and not request.wit_authorities:
            raise failure(call.log, Code.INVALID_ARGUMENT, "no authorities to append")
        with failing(log, "failed to convert JWT authority", Code.INVALID_ARGUMENT):
            jwt_authorities = await jwt_authorities_from_proto(request.jwt_authorities)
        with failing(log, "failed to convert X.509 authority", Code.INVALID_ARGUMENT):
            x509_authorities = await x509_authorities_from_proto(request.x509_authorities)
        with failing(log, "failed to convert WIT authority", Code.INVALID_ARGUMENT):
            wit_authorities = await wit_authorities_from_proto(request.wit_authorities)
        appended = Bundle(self._trust_domain, x509_authorities, jwt_authorities, wit_authorities=wit_authorities)
        with failing(log, "failed to append bundle"):
            bundle = await self._store.append_bundle(appended)
        call.succeeded()
        return _masked(bundle, _mask(request))

    async def publish_jwt_authority(
        self, request: api.PublishJWTAuthorityRequest, _peer: Peer, context: Context
    ) -> api.PublishJWTAuthorityResponse:
        """A downstream server's key: what it signs is of this trust domain too, and known as far up as can be."""
        call = Call.of(context)
        key = request.jwt_authority if request.HasField("jwt_authority") else None
        if key is not None:
            call.note(**jwt_authority_fields(key))
        await call.limit(1, "key publishing")
        if key is None:
            raise failure(call.log, Code.INVALID_ARGUMENT, "missing JWT authority")
        with failing(call.log, "invalid JWT authority", Code.INVALID_ARGUMENT):
            (published,) = await jwt_authorities_from_proto([key])
        with failing(call.log, "failed to publish JWT key"):
            known = await self._publish(published)
        call.succeeded()
        return api.PublishJWTAuthorityResponse(jwt_authorities=jwt_authorities_to_proto(known))

    async def publish_wit_authority(
        self, _request: api.PublishWITAuthorityRequest, _peer: Peer, context: Context
    ) -> api.PublishWITAuthorityResponse:
        """SPIRE 1.16 has the method, and this answer."""
        log = Call.of(context).log
        raise failure(log, Code.UNIMPLEMENTED, "WIT-SVID functionality is not yet implemented")

    # All

    async def count(self, _request: api.CountBundlesRequest, _peer: Peer, context: Context) -> api.CountBundlesResponse:
        call = Call.of(context)
        with failing(call.log, "failed to count bundles"):
            count = await self._store.count_bundles()
        call.succeeded()
        return api.CountBundlesResponse(count=count)

    # Those of other trust domains

    async def list(
        self, request: api.ListFederatedBundlesRequest, _peer: Peer, context: Context
    ) -> api.ListFederatedBundlesResponse:
        call = Call.of(context)
        size = max(request.page_size, 0)
        with failing(call.log, "failed to list bundles", of=code_of_store):
            page = await self._store.list_bundles(
                page_size=size, page_token=request.page_token if size else "", without=self._trust_domain
            )
        mask = _mask(request)
        call.succeeded()
        bundles = await paced(lambda bundle: _masked(bundle, mask), page.items)
        return api.ListFederatedBundlesResponse(bundles=bundles, next_page_token=page.next_token)

    async def get_federated(
        self, request: api.GetFederatedBundleRequest, _peer: Peer, context: Context
    ) -> bundle_pb2.Bundle:
        call = Call.of(context)
        call.note(trust_domain_id=request.trust_domain)
        log = call.log.bind(trust_domain_id=request.trust_domain)
        with failing(log, "trust domain argument is not valid", Code.INVALID_ARGUMENT):
            trust_domain = TrustDomain.parse(request.trust_domain)
        if trust_domain == self._trust_domain:
            message = "getting a federated bundle for the server's own trust domain is not allowed"
            raise failure(log, Code.INVALID_ARGUMENT, message)
        return await self._get(trust_domain, call, log, _mask(request))

    async def create(
        self, request: api.BatchCreateFederatedBundleRequest, _peer: Peer, context: Context
    ) -> api.BatchCreateFederatedBundleResponse:
        writing = _Writing("creating", self._store.create_bundle, "Federated bundle created", "unable to create bundle")
        response = api.BatchCreateFederatedBundleResponse()
        async for status, bundle in self._write(request.bundle, writing, Call.of(context), _mask(request)):
            response.results.add(status=status, bundle=bundle)
        return response

    async def update(
        self, request: api.BatchUpdateFederatedBundleRequest, _peer: Peer, context: Context
    ) -> api.BatchUpdateFederatedBundleResponse:
        mask = request.input_mask if request.HasField("input_mask") else None
        fields = ALL_FIELDS if mask is None else ALL_FIELDS & masks.names(mask)

        async def update(bundle: Bundle) -> Bundle:
            return await self._store.update_bundle(bundle, fields)

        writing = _Writing("updating", update, "Federated bundle updated", "failed to update bundle", mask)
        response = api.BatchUpdateFederatedBundleResponse()
        async for status, bundle in self._write(request.bundle, writing, Call.of(context), _mask(request)):
            response.results.add(status=status, bundle=bundle)
        return response

    async def set(
        self, request: api.BatchSetFederatedBundleRequest, _peer: Peer, context: Context
    ) -> api.BatchSetFederatedBundleResponse:
        writing = _Writing("setting", self._store.set_bundle, "Bundle set successfully", "failed to set bundle")
        response = api.BatchSetFederatedBundleResponse()
        async for status, bundle in self._write(request.bundle, writing, Call.of(context), _mask(request)):
            response.results.add(status=status, bundle=bundle)
        return response

    async def _write(
        self,
        messages: Sequence[bundle_pb2.Bundle],
        writing: _Writing,
        call: Call,
        mask: bundle_pb2.BundleMask | None,
    ) -> AsyncGenerator[tuple[status_pb2.Status, bundle_pb2.Bundle | None]]:
        """The outcome for each bundle, one after the other; `mask` is for what is answered."""
        for message in messages:
            log = call.log.bind(trust_domain_id=message.trust_domain)
            status, bundle = await self._write_one(message, writing, log)
            yield status, None if bundle is None else _masked(bundle, mask)
            if call.audit is not None:
                call.audit.item(status.code, status.message, **audit_fields(message, writing.mask))
            # What fails its checks does not wait for the datastore: others get their turn here.
            await asyncio.sleep(0)

    async def _write_one(
        self, message: bundle_pb2.Bundle, writing: _Writing, log: Logger
    ) -> tuple[status_pb2.Status, Bundle | None]:
        try:
            trust_domain = TrustDomain.parse(message.trust_domain)
        except InvalidArgument as error:
            return failed(log, Code.INVALID_ARGUMENT, "trust domain argument is not valid", error), None
        if trust_domain == self._trust_domain:
            text = f"{writing.doing} a federated bundle for the server's own trust domain is not allowed"
            return failed(log, Code.INVALID_ARGUMENT, text), None
        try:
            wanted = await bundle_from_proto(message)
        except InvalidArgument as error:
            return failed(log, Code.INVALID_ARGUMENT, "failed to convert bundle", error), None
        try:
            bundle = await writing.write(wanted)
        except (AlreadyExists, NotFound) as error:
            return failed(log, code_of_store(error), str(error)), None
        except SpireError as error:
            return failed(log, code_of(error), writing.failed, error), None
        log.info(writing.done)
        return ok(), bundle

    async def delete(
        self, request: api.BatchDeleteFederatedBundleRequest, _peer: Peer, context: Context
    ) -> api.BatchDeleteFederatedBundleResponse:
        call = Call.of(context)
        mode = _MODES.get(request.mode)
        if mode is None:
            reason = InvalidArgument(f'unhandled delete mode "{request.mode}"')
            raise failure(call.log, Code.INVALID_ARGUMENT, "failed to parse deletion mode", reason)
        mode_name = _Mode.Mode.Name(request.mode)
        log = call.log.bind(delete_federated_bundle_mode=mode_name)
        response = api.BatchDeleteFederatedBundleResponse()
        for name in request.trust_domains:
            status = await self._delete(name, mode, log.bind(trust_domain_id=name))
            response.results.add(status=status, trust_domain=name)
            if call.audit is not None:
                call.audit.item(status.code, status.message, trust_domain_id=name, mode=mode_name)
            await asyncio.sleep(0)
        return response

    async def _delete(self, name: str, mode: DeleteMode, log: Logger) -> status_pb2.Status:
        try:
            trust_domain = TrustDomain.parse(name)
        except InvalidArgument as error:
            return failed(log, Code.INVALID_ARGUMENT, "trust domain argument is not valid", error)
        if trust_domain == self._trust_domain:
            message = "removing the bundle for the server trust domain is not allowed"
            return failed(log, Code.INVALID_ARGUMENT, message)
        try:
            await self._store.delete_bundle(trust_domain, mode)
        except NotFound:
            return failed(log, Code.NOT_FOUND, "bundle not found")
        except Refused as error:
            return failed(log, Code.FAILED_PRECONDITION, "failed to delete federated bundle", error)
        except SpireError as error:
            return failed(log, code_of(error), "failed to delete federated bundle", error)
        return ok()

    # Shared

    async def _get(
        self, trust_domain: TrustDomain, call: Call, log: Logger, mask: bundle_pb2.BundleMask | None
    ) -> bundle_pb2.Bundle:
        with failing(log, "failed to fetch bundle"):
            bundle = await self._bundles.get(trust_domain)
        if bundle is None:
            raise failure(log, Code.NOT_FOUND, "bundle not found")
        call.succeeded()
        return _masked(bundle, mask)


def _mask(
    request: api.GetBundleRequest
    | api.AppendBundleRequest
    | api.GetFederatedBundleRequest
    | api.ListFederatedBundlesRequest
    | api.BatchCreateFederatedBundleRequest
    | api.BatchUpdateFederatedBundleRequest
    | api.BatchSetFederatedBundleRequest,
) -> bundle_pb2.BundleMask | None:
    return request.output_mask if request.HasField("output_mask") else None


def _masked(bundle: Bundle, mask: bundle_pb2.BundleMask | None) -> bundle_pb2.Bundle:
    message = bundle.to_proto()
    masks.apply(message, mask)
    return message


def _fields_of_authorities(request: api.AppendBundleRequest) -> dict[str, object]:
    bundle = bundle_pb2.Bundle(
        jwt_authorities=request.jwt_authorities,
        x509_authorities=request.x509_authorities,
        wit_authorities=request.wit_authorities,
    )
    mask = bundle_pb2.BundleMask(jwt_authorities=True, x509_authorities=True, wit_authorities=True)
    return audit_fields(bundle, mask)
