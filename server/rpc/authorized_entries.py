"""The entries of an agent as bytes: joined, not copied, for whole lists and for the pages of an incremental sync.

An entry's serialised form is kept by the EntryIndex; what an output mask leaves of it is kept here, per mask.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Sequence

from generated.spire.api.server.entry.v1 import entry_pb2 as api
from generated.spire.api.types import entry_pb2
from server.datastore.records import Changes
from server.entries import IndexedEntry
from server.rpc import masks
from transport.status import Code, RpcError

PAGE_SIZE = 500
MAX_PAGE = 2 * 1024 * 1024
"""Bytes of entries in one message: agents take 4 MiB, and after a longer one would never be in step again."""
MAX_MASKS = 8

# Entries that are serialised before others get their turn on the event loop.
_BREATH = 500

# Protobuf's wire format: field number << 3 | 2, for length-delimited values.
_FULL_TAG = api.GetAuthorizedEntriesResponse.ENTRIES_FIELD_NUMBER << 3 | 2
_SYNC_TAG = api.SyncAuthorizedEntriesResponse.ENTRIES_FIELD_NUMBER << 3 | 2
_REVISION_TAG = api.SyncAuthorizedEntriesResponse.ENTRY_REVISIONS_FIELD_NUMBER << 3 | 2
_MORE = bytes((api.SyncAuthorizedEntriesResponse.MORE_FIELD_NUMBER << 3, 1))


class _Forms:
    """One serialised form of each entry, with its length before it, made once and kept while the entry lasts."""

    def __init__(self, make: Callable[[IndexedEntry], bytes]) -> None:
        self._make = make
        self._kept: dict[str, tuple[IndexedEntry, bytes]] = {}

    async def of(self, entries: Sequence[IndexedEntry]) -> list[bytes]:
        get = self._kept.get
        forms = [kept[1] for entry in entries if (kept := get(entry.record.id)) is not None and kept[0] is entry]
        return forms if len(forms) == len(entries) else await self._completed(entries)

    def forget(self, entry_ids: Iterable[str]) -> None:
        for entry_id in entry_ids:
            self._kept.pop(entry_id, None)

    async def _completed(self, entries: Sequence[IndexedEntry]) -> list[bytes]:
        forms: list[bytes] = []
        for number, entry in enumerate(entries):
            kept = self._kept.get(entry.record.id)
            if kept is None or kept[0] is not entry:
                kept = self._kept[entry.record.id] = (entry, frame(self._make(entry)))
            forms.append(kept[1])
            if number % _BREATH == 0:
                await asyncio.sleep(0)
        return forms


class EntryPages:
    """Builds the responses of GetAuthorizedEntries and SyncAuthorizedEntries.

    `apply` is to be subscribed to the datastore, so that nothing outdated is kept.
    """

    def __init__(self, page_size: int = PAGE_SIZE) -> None:
        self._page_size = page_size
        self._revisions = _Forms(_revision)
        self._masked: OrderedDict[bytes, _Forms] = OrderedDict()

    def apply(self, changes: Changes) -> None:
        for forms in (self._revisions, *self._masked.values()):
            forms.forget(changes.entries)

    async def response(self, entries: Sequence[IndexedEntry], mask: entry_pb2.EntryMask | None) -> bytes:
        """A serialised GetAuthorizedEntriesResponse."""
        return _join(_FULL_TAG, await self._forms(mask).of(entries))

    async def sync(
        self,
        entries: Sequence[IndexedEntry],
        requests: AsyncIterator[api.SyncAuthorizedEntriesRequest],
    ) -> AsyncGenerator[bytes, None]:
        """All entries where they fit a message; else their revisions, then what the agent asks for, page by page.

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
        forms = self._forms(mask)
        if len(entries) <= self._page_size:
            framed = await forms.of(entries)
            if sum(map(len, framed)) <= MAX_PAGE:
                yield _join(_SYNC_TAG, framed)
                return
        for page, more in self._paged(entries):
            yield _page(_REVISION_TAG, await self._revisions.of(page), more=more)
        by_id: dict[str, IndexedEntry] = {}
        async for request in requests:
            by_id = by_id or {entry.record.id: entry for entry in entries}
            wanted = [by_id[entry_id] for entry_id in sorted(set(request.ids)) if entry_id in by_id]
            for page, more in self._paged(wanted):
                parts = _parts(await forms.of(page))
                for number, part in enumerate(parts, 1):
                    yield _page(_SYNC_TAG, part, more=more or number < len(parts))

    def _paged(self, entries: Sequence[IndexedEntry]) -> Iterator[tuple[Sequence[IndexedEntry], bool]]:
        """The entries page by page, and whether more follow; one empty page for none."""
        for start in range(0, max(len(entries), 1), self._page_size):
            end = start + self._page_size
            yield entries[start:end], end < len(entries)

    def _forms(self, mask: entry_pb2.EntryMask | None) -> _Forms:
        """The forms that a mask leaves."""
        key = b"" if mask is None else b"m" + mask.SerializeToString(deterministic=True)
        forms = self._masked.get(key)
        if forms is None:
            unwanted = () if mask is None else tuple(masks.missing(mask))
            forms = self._masked[key] = _Forms(lambda entry: _without(entry.proto_bytes, unwanted))
            if len(self._masked) > MAX_MASKS:
                self._masked.popitem(last=False)
        self._masked.move_to_end(key)
        return forms


def _without(serialised: bytes, unwanted: Sequence[str]) -> bytes:
    if not unwanted:
        return serialised
    message = entry_pb2.Entry.FromString(serialised)
    masks.clear(message, unwanted)
    return message.SerializeToString()


def _revision(entry: IndexedEntry) -> bytes:
    record = entry.record
    return api.EntryRevision(
        id=record.id, revision_number=record.revision_number, created_at=record.created_at
    ).SerializeToString()


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


def _parts(framed: Sequence[bytes]) -> list[list[bytes]]:
    """A page cut where it would grow too long for one message."""
    parts: list[list[bytes]] = [[]]
    length = 0
    for entry in framed:
        if parts[-1] and length + len(entry) > MAX_PAGE:
            parts.append([])
            length = 0
        parts[-1].append(entry)
        length += len(entry) + 1
    return parts


def _page(tag: int, framed: list[bytes], *, more: bool) -> bytes:
    return _join(tag, framed) + _MORE if more else _join(tag, framed)
