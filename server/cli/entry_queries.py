"""`spire-server entry show` and `count`."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf import wrappers_pb2

from generated.spire.api.server.entry.v1 import entry_pb2
from generated.spire.api.types import entry_pb2 as types
from generated.spire.api.types import federateswith_pb2, selector_pb2
from operations import output
from operations.errors import InvalidArgument, NotFound, SpireError, TemporarilyUnavailable
from operations.flags import FlagSet, Run
from server.cli import values
from server.cli.client import calling
from server.cli.entry_text import print_entry
from transport.client import Channel

SERVICE = "/spire.api.server.entry.v1.Entry"
PAGE = 500

Filter = TypeVar("Filter", entry_pb2.ListEntriesRequest.Filter, entry_pb2.CountEntriesRequest.Filter)


class EntryFilter:
    """The flags that select entries. `fill` raises InvalidArgument."""

    def __init__(self, flags: FlagSet) -> None:
        self.parent_id = flags.string("parentID", "", "Only entries with this parent, e.g. an agent's SPIFFE ID")
        self.spiffe_id = flags.string("spiffeID", "", "Only entries that issue this SPIFFE ID")
        self.selectors = flags.strings(
            "selector", "Only entries with this selector, as type:value; repeatable, see -matchSelectorsOn"
        )
        self._downstream = flags.boolean(
            "downstream",
            "Only entries of downstream servers",
        )
        self._federates_with = flags.strings(
            "federatesWith",
            "Only entries that federate with this trust domain, e.g. spiffe://other.test; repeatable, see "
            "-matchFederatesWithOn",
        )
        self._match_federates_with = flags.string(
            "matchFederatesWithOn",
            "superset",
            values.match_usage("-federatesWith"),
        )
        self._match_selectors = flags.string("matchSelectorsOn", "superset", values.match_usage("-selector"))
        self._hint = flags.string("hint", "", "Only entries with this hint")

    def fill(self, wanted: Filter) -> Filter:
        if self.parent_id.value:
            found = values.explained("error parsing parent ID %s", values.spiffe_id, [self.parent_id.value])
            wanted.by_parent_id.CopyFrom(found[0])
        if self.spiffe_id.value:
            found = values.explained("error parsing SPIFFE ID %s", values.spiffe_id, [self.spiffe_id.value])
            wanted.by_spiffe_id.CopyFrom(found[0])
        if self.selectors.value:
            wanted.by_selectors.match = values.behavior(self._match_selectors)
            selectors = values.explained("error parsing selectors", values.selector, self.selectors.value)
            wanted.by_selectors.selectors.extend(selectors)
        if self._federates_with.value:
            # The two enumerations have the same numbers.
            match = values.behavior(self._match_federates_with)
            wanted.by_federates_with.match = federateswith_pb2.FederatesWithMatch.MatchBehavior.ValueType(match)
            wanted.by_federates_with.trust_domains.extend(self._federates_with.value)
        if self._hint.value:
            wanted.by_hint.CopyFrom(wrappers_pb2.StringValue(value=self._hint.value))
        # SPIRE's commands always send it; false filters nothing.
        wanted.by_downstream.CopyFrom(wrappers_pb2.BoolValue(value=self._downstream.value))
        return wanted


def show(flags: FlagSet) -> Run:
    entry_id = flags.string(
        "entryID", "", "Show the one entry with this ID. Excludes -parentID, -selector and -spiffeID"
    )
    wanted = EntryFilter(flags)
    form = output.add_flag(flags)

    async def act(server: Channel) -> None:
        if entry_id.value and (wanted.parent_id.value or wanted.spiffe_id.value or wanted.selectors.value):
            raise InvalidArgument("the -entryID flag can't be combined with others")
        entries = [await _get(server, entry_id.value)] if entry_id.value else await _list(server, wanted)
        for entry in entries:
            entry.selectors.sort(key=_selector_order)
        entries.sort(key=_order)
        found = entry_pb2.ListEntriesResponse(entries=entries)
        output.print_result(form.value, found, pretty=lambda: _print(found))

    return calling(flags, act)


def count(flags: FlagSet) -> Run:
    wanted = EntryFilter(flags)
    form = output.add_flag(flags)

    async def act(server: Channel) -> None:
        request = entry_pb2.CountEntriesRequest(filter=wanted.fill(entry_pb2.CountEntriesRequest.Filter()))
        found = await server.unary(f"{SERVICE}/CountEntries", request, entry_pb2.CountEntriesResponse)
        text = f"{found.count} registration {_entries(found.count)}"
        output.print_result(form.value, found, pretty=lambda: print(text))

    return calling(flags, act)


async def _get(server: Channel, entry_id: str) -> types.Entry:
    try:
        return await server.unary(f"{SERVICE}/GetEntry", entry_pb2.GetEntryRequest(id=entry_id), types.Entry)
    except SpireError as error:
        raise NotFound(f"error fetching entry ID {entry_id}: {error}") from error


async def _list(server: Channel, wanted: EntryFilter) -> list[types.Entry]:
    wanted_by_api = wanted.fill(entry_pb2.ListEntriesRequest.Filter())
    request = entry_pb2.ListEntriesRequest(filter=wanted_by_api, page_size=PAGE)
    entries: list[types.Entry] = []
    while True:
        try:
            page = await server.unary(f"{SERVICE}/ListEntries", request, entry_pb2.ListEntriesResponse)
        except SpireError as error:
            raise TemporarilyUnavailable(f"error fetching entries: {error}") from error
        entries.extend(page.entries)
        if not page.next_page_token:
            return entries
        request.page_token = page.next_page_token


def _selector_order(selector: selector_pb2.Selector) -> tuple[str, str]:
    return selector.type, selector.value


def _order(entry: types.Entry) -> tuple[object, ...]:
    return (
        (entry.spiffe_id.trust_domain, entry.spiffe_id.path),
        (entry.parent_id.trust_domain, entry.parent_id.path),
        (entry.x509_svid_ttl, entry.jwt_svid_ttl),
        len(entry.selectors),
        [_selector_order(selector) for selector in entry.selectors],
    )


def _entries(number: int) -> str:
    return "entry" if number == 1 else "entries"


def _print(found: entry_pb2.ListEntriesResponse) -> None:
    print(f"Found {len(found.entries)} {_entries(len(found.entries))}")
    for entry in found.entries:
        print_entry(entry)
