"""spire.api.server.entry.v1.Entry: registration entries, for operators and for the agents that serve them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import TypeVar

from generated.spire.api.server.entry.v1 import entry_pb2 as api
from generated.spire.api.types import entry_pb2, spiffeid_pb2, status_pb2
from identity.spiffeid import TrustDomain
from operations.errors import InvalidArgument, NotFound, SpireError
from server.datastore.convert import entry_to_proto
from server.datastore.entries import ALL_FIELDS
from server.datastore.records import Entry, EntryFilter
from server.datastore.store import DataStore
from server.entries import EntryIndex
from server.rpc import convert, ids, masks
from server.rpc.authorized_entries import EntryPages
from server.rpc.call import Call
from server.rpc.failures import code_of, code_of_store, failed, failing, failure, ok
from server.rpc.pacing import paced, paging
from transport.peer import Peer
from transport.router import Context, Handler
from transport.status import Code

T = TypeVar("T")
R = TypeVar("R")

_SHARED_COMMIT = 64


class EntryService:
    DESCRIPTOR = api.DESCRIPTOR.services_by_name["Entry"]

    def __init__(self, trust_domain: TrustDomain, store: DataStore, index: EntryIndex) -> None:
        self._trust_domain = trust_domain
        self._store = store
        self._index = index
        self._pages = EntryPages()
        store.subscribe(self._pages.apply)

    def handlers(self) -> dict[str, Handler]:
        return {
            "CountEntries": self.count,
            "ListEntries": self.list,
            "GetEntry": self.get,
            "BatchCreateEntry": self.create,
            "BatchUpdateEntry": self.update,
            "BatchDeleteEntry": self.delete,
            "GetAuthorizedEntries": self.authorized,
            "SyncAuthorizedEntries": self.sync,
        }

    async def count(self, request: api.CountEntriesRequest, _peer: Peer, context: Context) -> api.CountEntriesResponse:
        call = Call.of(context)
        filter = self._filter(request.filter, call)
        with failing(call.log, "failed to count entries", of=code_of_store):
            count = await self._store.count_entries(filter)
        call.succeeded()
        return api.CountEntriesResponse(count=count)

    async def list(self, request: api.ListEntriesRequest, _peer: Peer, context: Context) -> api.ListEntriesResponse:
        call = Call.of(context)
        filter = self._filter(request.filter, call)
        with failing(call.log, "failed to list entries", of=code_of_store):
            page = await self._store.list_entries(filter, **paging(request))
        mask = request.output_mask if request.HasField("output_mask") else None
        call.succeeded()
        entries = await paced(lambda entry: _masked(entry, mask), page.items)
        return api.ListEntriesResponse(entries=entries, next_page_token=page.next_token)

    async def get(self, request: api.GetEntryRequest, _peer: Peer, context: Context) -> entry_pb2.Entry:
        call = Call.of(context)
        if not request.id:
            raise failure(call.log, Code.INVALID_ARGUMENT, "missing ID")
        call.note(entry_id=request.id)
        log = call.log.bind(entry_id=request.id)
        with failing(log, "failed to fetch entry"):
            entry = await self._store.get_entry(request.id)
        if entry is None:
            raise failure(log, Code.NOT_FOUND, "entry not found")
        call.succeeded()
        return _masked(entry, request.output_mask if request.HasField("output_mask") else None)

    async def create(
        self, request: api.BatchCreateEntryRequest, _peer: Peer, context: Context
    ) -> api.BatchCreateEntryResponse:
        call = Call.of(context)
        mask = request.output_mask if request.HasField("output_mask") else None
        response = api.BatchCreateEntryResponse()
        async for message, (status, entry) in _together(lambda message: self._create(message, call), request.entries):
            result = response.results.add(status=status)
            if entry is not None:
                result.entry.CopyFrom(_masked(entry, mask))
            _audit(call, status, message, None)
        return response

    async def _create(self, message: entry_pb2.Entry, call: Call) -> tuple[status_pb2.Status, Entry | None]:
        try:
            wanted = convert.entry_from_proto(self._trust_domain, message)
        except InvalidArgument as error:
            return failed(call.log, Code.INVALID_ARGUMENT, "failed to convert entry", error), None
        log = call.log.bind(spiffe_id=wanted.spiffe_id)
        try:
            entry, existing = await self._store.create_or_return_entry(wanted)
        except SpireError as error:
            return failed(log, code_of_store(error), "failed to create entry", error), None
        if existing:
            return status_pb2.Status(code=int(Code.ALREADY_EXISTS), message="similar entry already exists"), entry
        return ok(), entry

    async def update(
        self, request: api.BatchUpdateEntryRequest, _peer: Peer, context: Context
    ) -> api.BatchUpdateEntryResponse:
        call = Call.of(context)
        input_mask = request.input_mask if request.HasField("input_mask") else None
        output_mask = request.output_mask if request.HasField("output_mask") else None
        response = api.BatchUpdateEntryResponse()
        outcomes = _together(lambda message: self._update(message, input_mask, call), request.entries)
        async for message, (status, entry) in outcomes:
            result = response.results.add(status=status)
            if entry is not None:
                result.entry.CopyFrom(_masked(entry, output_mask))
            _audit(call, status, message, input_mask)
        return response

    async def _update(
        self, message: entry_pb2.Entry, mask: entry_pb2.EntryMask | None, call: Call
    ) -> tuple[status_pb2.Status, Entry | None]:
        log = call.log.bind(entry_id=message.id)
        fields = ALL_FIELDS if mask is None else ALL_FIELDS & masks.names(mask)
        try:
            wanted = convert.entry_from_proto(self._trust_domain, message, fields)
        except InvalidArgument as error:
            return failed(log, Code.INVALID_ARGUMENT, "failed to convert entry", error), None
        try:
            entry = await self._store.update_entry(wanted, fields)
        except SpireError as error:
            return failed(log, code_of_store(error), "failed to update entry", error), None
        return ok(), entry

    async def delete(
        self, request: api.BatchDeleteEntryRequest, _peer: Peer, context: Context
    ) -> api.BatchDeleteEntryResponse:
        call = Call.of(context)
        response = api.BatchDeleteEntryResponse()
        async for entry_id, status in _together(lambda entry_id: self._delete(entry_id, call), request.ids):
            response.results.add(id=entry_id, status=status)
            if call.audit is not None:
                call.audit.item(status.code, status.message, entry_id=entry_id)
        return response

    async def _delete(self, entry_id: str, call: Call) -> status_pb2.Status:
        if not entry_id:
            return failed(call.log, Code.INVALID_ARGUMENT, "missing entry ID")
        log = call.log.bind(entry_id=entry_id)
        try:
            await self._store.delete_entry(entry_id)
        except NotFound:
            return failed(log, Code.NOT_FOUND, "entry not found")
        except SpireError as error:
            return failed(log, code_of(error), "failed to delete entry", error)
        return ok()

    async def authorized(self, request: api.GetAuthorizedEntriesRequest, _peer: Peer, context: Context) -> bytes:
        call = Call.of(context)
        entries = self._index.authorized_entries(str(call.agent_id()))
        mask = request.output_mask if request.HasField("output_mask") else None
        call.succeeded()
        return await self._pages.response(entries, mask)

    async def sync(
        self, requests: AsyncIterator[api.SyncAuthorizedEntriesRequest], _peer: Peer, context: Context
    ) -> AsyncIterator[bytes]:
        call = Call.of(context)
        entries = self._index.authorized_entries(str(call.agent_id()))
        async with aclosing(self._pages.sync(entries, requests)) as responses:
            async for response in responses:
                yield response
        call.succeeded()

    def _filter(
        self, message: api.ListEntriesRequest.Filter | api.CountEntriesRequest.Filter, call: Call
    ) -> EntryFilter:
        """The filter of a list or a count, which have the same fields. Raises RpcError INVALID_ARGUMENT."""
        log = call.log
        call.note(**_filter_fields(message))
        parent_id = spiffe_id = ""
        if message.HasField("by_parent_id"):
            with failing(log, "malformed parent ID filter", Code.INVALID_ARGUMENT):
                parent_id = str(ids.member(self._trust_domain, message.by_parent_id))
        if message.HasField("by_spiffe_id"):
            with failing(log, "malformed SPIFFE ID filter", Code.INVALID_ARGUMENT):
                spiffe_id = str(ids.workload(self._trust_domain, message.by_spiffe_id))
        selectors = federates_with = None
        if message.HasField("by_selectors"):
            with failing(log, "malformed selectors filter", Code.INVALID_ARGUMENT):
                selectors = convert.selector_match(message.by_selectors)
                if not selectors.selectors:
                    raise InvalidArgument("empty selector set")
        if message.HasField("by_federates_with"):
            with failing(log, "malformed federates with filter", Code.INVALID_ARGUMENT):
                federates_with = convert.federates_with_match(message.by_federates_with)
        return EntryFilter(
            parent_id=parent_id,
            spiffe_id=spiffe_id,
            selectors=selectors,
            federates_with=federates_with,
            hint=message.by_hint.value,
            # As in SPIRE, false filters nothing: its commands send it whenever -downstream is not given.
            downstream=message.by_downstream.value or None,
        )


async def _together(write: Callable[[T], Coroutine[None, None, R]], items: Sequence[T]) -> AsyncGenerator[tuple[T, R]]:
    """Each item with the outcome of its write, in order. They reach the datastore in that order, and share commits."""
    for start in range(0, len(items), _SHARED_COMMIT):
        part = items[start : start + _SHARED_COMMIT]
        for item, outcome in zip(part, await asyncio.gather(*map(write, part)), strict=True):
            yield item, outcome
        # What fails its checks does not wait for the datastore: others get their turn here.
        await asyncio.sleep(0)


def _masked(entry: Entry, mask: entry_pb2.EntryMask | None) -> entry_pb2.Entry:
    message = entry_to_proto(entry)
    masks.apply(message, mask)
    return message


def _audit(call: Call, status: status_pb2.Status, message: entry_pb2.Entry, mask: entry_pb2.EntryMask | None) -> None:
    if call.audit is not None:
        call.audit.item(status.code, status.message, **_entry_fields(message, mask))


def _entry_fields(message: entry_pb2.Entry, mask: entry_pb2.EntryMask | None) -> dict[str, object]:
    texts: dict[str, str] = {
        "spiffe_id": _id_text(message.spiffe_id),
        "parent_id": _id_text(message.parent_id),
        "selectors": convert.selectors_text(message.selectors),
        "federates_with": ",".join(message.federates_with),
        "dns_names": ",".join(message.dns_names),
    }
    plain = (
        "x509_svid_ttl", "jwt_svid_ttl", "admin", "downstream", "expires_at", "revision_number", "store_svid", "hint",
        "created_at",
    )  # fmt: skip
    fields: dict[str, object] = {name: text for name, text in texts.items() if text and _covers(mask, name)}
    fields.update((name, getattr(message, name)) for name in plain if _covers(mask, name))
    if "dns_names" in fields:
        fields["dns_name"] = fields.pop("dns_names")
    if message.id:
        fields["entry_id"] = message.id
    return fields


def _covers(mask: entry_pb2.EntryMask | None, field: str) -> bool:
    return mask is None or bool(getattr(mask, field))


def _id_text(spiffe_id: spiffeid_pb2.SPIFFEID) -> str:
    return f"spiffe://{spiffe_id.trust_domain}{spiffe_id.path}" if spiffe_id.trust_domain else ""


def _filter_fields(message: api.ListEntriesRequest.Filter | api.CountEntriesRequest.Filter) -> dict[str, object]:
    fields: dict[str, object] = {}
    if message.HasField("by_hint"):
        fields["hint"] = message.by_hint.value
    if message.HasField("by_parent_id"):
        fields["parent_id"] = _id_text(message.by_parent_id)
    if message.HasField("by_spiffe_id"):
        fields["spiffe_id"] = _id_text(message.by_spiffe_id)
    if message.HasField("by_selectors"):
        match = message.by_selectors
        fields["by_selector_match"] = convert.match_text(match)
        fields["by_selectors"] = convert.selectors_text(match.selectors)
    if message.HasField("by_federates_with"):
        domains = message.by_federates_with
        fields["federates_with_match"] = convert.match_text(domains)
        fields["federates_with"] = ",".join(domains.trust_domains)
    if message.HasField("by_downstream"):
        fields["downstream"] = message.by_downstream.value
    return fields
