"""`spire-server entry create`, `update` and `delete`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TypeVar

from generated.spire.api.server.entry.v1 import entry_pb2
from generated.spire.api.types import entry_pb2 as types
from generated.spire.api.types import status_pb2
from operations import output
from operations.errors import InvalidArgument, Refused, SpireError
from operations.flags import FlagSet, Run
from operations.quoting import quote
from server.cli.client import calling
from server.cli.entry_flags import EntryFlags
from server.cli.entry_text import print_entry
from transport.client import Channel
from transport.status import Code

SERVICE = "/spire.api.server.entry.v1.Entry"

Changes = TypeVar("Changes", entry_pb2.BatchCreateEntryResponse, entry_pb2.BatchUpdateEntryResponse)


def create(flags: FlagSet) -> Run:
    fields = EntryFlags(
        flags,
        entry_id="ID of the new entry; the server makes one when unset",
        parent_id="SPIFFE ID of the agent, or group of agents, that may hand the SVID out. Required, but "
        "ignored beside -node",
    )
    of_node = flags.boolean(
        "node",
        "Register agents rather than workloads: every agent with these selectors gets -spiffeID as a second name, "
        "and the server is the parent. Excludes -federatesWith",
    )
    form = output.add_flag(flags)

    def entries() -> list[types.Entry]:
        if fields.data.value:
            return _from_file(fields.data.value)
        if of_node.value and fields.selectors.value and fields.federates_with.value:
            raise InvalidArgument("node entries can not federate")
        fields.require(parent=None if of_node.value else "a parent ID is required if the node flag is not set")
        return [fields.to_entry(of_node=of_node.value)]

    async def act(server: Channel) -> None:
        request = entry_pb2.BatchCreateEntryRequest(entries=entries())
        response = await server.unary(f"{SERVICE}/BatchCreateEntry", request, entry_pb2.BatchCreateEntryResponse)
        _add_what_failed(response, request.entries)
        output.print_result(form.value, response, pretty=lambda: _print_changes("create", response))

    return calling(flags, act)


def update(flags: FlagSet) -> Run:
    fields = EntryFlags(
        flags,
        entry_id="ID of the entry to update, as entry show prints it; required",
        parent_id="SPIFFE ID of the agent, or group of agents, that may hand the SVID out; required",
    )
    form = output.add_flag(flags)

    async def entries(server: Channel) -> list[types.Entry]:
        if fields.data.value:
            return _from_file(fields.data.value)
        if not fields.entry_id.value:
            raise InvalidArgument("entry ID is required")
        fields.require(parent="a parent ID is required")
        entry = fields.to_entry()
        if fields.disable_x509_svid_prefetch.given or fields.jwt_svid_include_jti.given:
            await _keep_other_attributes(server, entry, fields)
        return [entry]

    async def act(server: Channel) -> None:
        request = entry_pb2.BatchUpdateEntryRequest(entries=await entries(server))
        response = await server.unary(f"{SERVICE}/BatchUpdateEntry", request, entry_pb2.BatchUpdateEntryResponse)
        _add_what_failed(response, request.entries)
        output.print_result(form.value, response, pretty=lambda: _print_changes("update", response))

    return calling(flags, act)


def delete(flags: FlagSet) -> Run:
    entry_id = flags.string("entryID", "", "ID of the entry to delete, as entry show prints it")
    file = flags.string(
        "file",
        "",
        'JSON file with the entries to delete, {"ids": ["...", "..."]}; - reads standard input. -entryID is then '
        "ignored",
    )
    form = output.add_flag(flags)

    async def act(server: Channel) -> None:
        if not file.value and not entry_id.value:
            raise InvalidArgument("an entry ID is required")
        ids = _ids_from_file(file.value) if file.value else [entry_id.value]
        request = entry_pb2.BatchDeleteEntryRequest(ids=ids)
        response = await server.unary(f"{SERVICE}/BatchDeleteEntry", request, entry_pb2.BatchDeleteEntryResponse)
        output.print_result(form.value, response, pretty=lambda: _print_deletions(response))

    return calling(flags, act)


def _from_file(path: str) -> list[types.Entry]:
    from server.cli import entry_file  # imports msgspec, which the other commands do not need

    return entry_file.read(path)


def _ids_from_file(path: str) -> list[str]:
    from server.cli import entry_file

    return entry_file.read_ids(path)


async def _keep_other_attributes(server: Channel, entry: types.Entry, fields: EntryFlags) -> None:
    """The API replaces all additional attributes at once; those without a flag keep the value they have."""
    try:
        existing = await server.unary(f"{SERVICE}/GetEntry", entry_pb2.GetEntryRequest(id=entry.id), types.Entry)
    except SpireError as error:
        raise Refused(f"failed to fetch existing entry to merge additional attributes: {error}") from error
    entry.additional_attributes.CopyFrom(existing.additional_attributes)
    for flag, name in (
        (fields.disable_x509_svid_prefetch, "disable_x509_svid_prefetch"),
        (fields.jwt_svid_include_jti, "jwt_svid_include_jti"),
    ):
        if flag.given:
            setattr(entry.additional_attributes, name, flag.value)


def _add_what_failed(response: Changes, asked: Sequence[types.Entry]) -> None:
    """The server does not send back entries that it refused; people want to see which they were."""
    for result, entry in zip(response.results, asked, strict=False):
        if result.status.code:
            result.entry.CopyFrom(entry)


def _print_changes(verb: str, response: Changes) -> None:
    for result in response.results:
        if not result.status.code:
            print_entry(result.entry)
    failed = [result for result in response.results if result.status.code]
    for result in failed:
        print(f"Failed to {verb} the following entry ({_status(result.status)}):", file=sys.stderr)
        print_entry(result.entry, sys.stderr)
    if failed:
        raise Refused(f"failed to {verb} one or more entries")


def _print_deletions(response: entry_pb2.BatchDeleteEntryResponse) -> None:
    deleted = [result for result in response.results if not result.status.code]
    failed = [result for result in response.results if result.status.code]
    for result in deleted:
        print(f"Deleted entry with ID: {result.id}")
    if deleted:
        print("\n")
    for result in failed:
        print(f"Failed to delete entry with ID {result.id} ({_status(result.status)})", file=sys.stderr)
    if failed:
        print("\n")
        summary = f"Failed to delete {len(failed)} entries"
        if deleted:
            summary = f"Deleted {len(deleted)} entries successfully, but failed to delete {len(failed)} entries"
        print(summary, end="")
        raise Refused("failed to delete one or more entries")
    print(f"Deleted {len(deleted)} entries successfully", end="")


def _status(status: status_pb2.Status) -> str:
    return f"code: {Code(status.code).label}, msg: {quote(status.message)}"
