"""The entries of an agent as bytes: joined, not copied, for whole lists and for the pages of an incremental sync.

An entry's serialised form is kept by the EntryIndex; what an output mask leaves of it is kept here, per mask.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from generated.spire.api.server.entry.v1 import entry_pb2 as api
from generated.spire.api.types import entry_pb2
from server.datastore.records import Changes
from server.entries import IndexedEntry
from server.rpc import masks
from transport.status import Code, RpcError

PAGE_SIZE = 500
MAX_MASKS = 8

# Entries that are serialised before others get their turn on the event loop.
_BREATH = 500

# Protobuf's wire format: field number << 3 | 2, for length-delimited values.
_FULL_TAG = api.GetAuthorizedEntriesResponse.ENTRIES_FIELD_NUMBER << 3 | 2
_SYNC_TAG = api.SyncAuthorizedEntriesResponse.ENTRIES_FIELD_NUMBER << 3 | 2
_MORE = bytes((api.SyncAuthorizedEntriesResponse.MORE_FIELD_NUMBER << 3, 1))


_Kept = tuple[bytes, bytes]
"""A serialised entry, and what a mask leaves of it with its length before it."""


class EntryPages:
    """Builds the responses of GetAuthorizedEntries and SyncAuthorizedEntries.

    `apply` is to be subscribed to the datastore, so that nothing outdated is kept.
    """

    def __init__(self, page_size: int = PAGE_SIZE) -> None:
        self._page_size = page_size
        self._framed_by_mask: OrderedDict[bytes, dict[str, _Kept]] = OrderedDict()

    def apply(self, changes: Changes) -> None:
        for framed in self._framed_by_mask.values():
            for entry_id in changes.entries:
                framed.pop(entry_id, None)

    async def response(self, entries: Sequence[IndexedEntry], mask: entry_pb2.EntryMask | None) -> bytes:
        """A serialised GetAuthorizedEntriesResponse."""
        return _join(_FULL_TAG, await self._framed(entries, mask))

    async def sync(
        self,
        entries: Sequence[IndexedEntry],
        requests: AsyncIterator[api.SyncAuthorizedEntriesRequest],
    ) -> AsyncGenerator[api.SyncAuthorizedEntriesResponse | bytes, None]:
        """All entries where they fit a page; else their revisions, then what the agent asks for, page by page.

        Raises RpcError INVALID_ARGUMENT.
        """
        first = await anext(requests, None)
        if first is None:
            return
        if first.ids:
            raise RpcError(Code.INVALID_ARGUMENT, "specifying IDs on initial request is not supported")
        mask = first.output_mask if first.HasField("output_mask") else None
        if mask is not None and not mask.revision_number:
            raise RpcError(Code.INVALID_ARGUMENT, "revision number cannot be masked")
        if len(entries) <= self._page_size:
            yield _join(_SYNC_TAG, await self._framed(entries, mask))
            return
        for start in range(0, len(entries), self._page_size):
            yield _revisions(entries[start : start + self._page_size], more=start + self._page_size < len(entries))
        by_id = {entry.record.id: entry for entry in entries}
        async for request in requests:
            wanted = [by_id[entry_id] for entry_id in sorted(request.ids) if entry_id in by_id]
            for start in range(0, max(len(wanted), 1), self._page_size):
                page = _join(_SYNC_TAG, await self._framed(wanted[start : start + self._page_size], mask))
                yield page + _MORE if start + self._page_size < len(wanted) else page

    async def _framed(self, entries: Sequence[IndexedEntry], mask: entry_pb2.EntryMask | None) -> list[bytes]:
        """The entries, masked, each with its length before it."""
        known = self._known(mask)
        unwanted = () if mask is None else tuple(masks.missing(mask))
        framed: list[bytes] = []
        made = 0
        for entry in entries:
            kept = known.get(entry.record.id)
            if kept is None or kept[0] is not entry.proto_bytes:
                kept = (entry.proto_bytes, frame(_without(entry.proto_bytes, unwanted)))
                known[entry.record.id] = kept
                made += 1
                if made % _BREATH == 0:
                    await asyncio.sleep(0)
            framed.append(kept[1])
        return framed

    def _known(self, mask: entry_pb2.EntryMask | None) -> dict[str, _Kept]:
        key = b"" if mask is None else b"m" + mask.SerializeToString(deterministic=True)
        known = self._framed_by_mask.setdefault(key, {})
        self._framed_by_mask.move_to_end(key)
        if len(self._framed_by_mask) > MAX_MASKS:
            self._framed_by_mask.popitem(last=False)
        return known


def _without(serialised: bytes, unwanted: Sequence[str]) -> bytes:
    if not unwanted:
        return serialised
    message = entry_pb2.Entry.FromString(serialised)
    masks.clear(message, unwanted)
    return message.SerializeToString()


def frame(message: bytes) -> bytes:
    """The message with its length before it, as a varint."""
    length = len(message)
    prefix = bytearray()
    while length > 0x7F:
        prefix.append(length & 0x7F | 0x80)
        length >>= 7
    prefix.append(length)
    return bytes(prefix) + message


def _join(tag: int, framed: list[bytes]) -> bytes:
    # The tag as the separator, with nothing before the first, puts it in front of each.
    return bytes((tag,)).join((b"", *framed))


def _revisions(entries: Sequence[IndexedEntry], *, more: bool) -> api.SyncAuthorizedEntriesResponse:
    return api.SyncAuthorizedEntriesResponse(
        entry_revisions=[
            api.EntryRevision(id=each.id, revision_number=each.revision_number, created_at=each.created_at)
            for each in (entry.record for entry in entries)
        ],
        more=more,
    )
