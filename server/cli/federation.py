"""`spire-server federation`: the trust domains whose bundles the server fetches, and from where."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO, TypeVar

from google.protobuf import empty_pb2

from generated.spire.api.server.trustdomain.v1 import trustdomain_pb2 as api
from generated.spire.api.types import federationrelationship_pb2 as types
from generated.spire.api.types import status_pb2
from operations import output
from operations.errors import InvalidArgument, NotFound, Refused, SpireError
from operations.flags import FlagSet, Run
from operations.quoting import quote
from server.cli.client import calling
from server.cli.federation_flags import FederationFlags
from transport.client import Channel
from transport.status import Code, RpcError

SERVICE = "/spire.api.server.trustdomain.v1.TrustDomain"
PAGE = 25
"""Few, because bundles may be long and a message has a limit."""

Changes = TypeVar(
    "Changes", api.BatchCreateFederationRelationshipResponse, api.BatchUpdateFederationRelationshipResponse
)


def create(flags: FlagSet) -> Run:
    fields = FederationFlags(flags)
    form = output.add_flag(flags)

    async def act(server: Channel) -> None:
        request = api.BatchCreateFederationRelationshipRequest(federation_relationships=fields.relationships())
        try:
            response = await server.unary(
                f"{SERVICE}/BatchCreateFederationRelationship", request, api.BatchCreateFederationRelationshipResponse
            )
        except SpireError as error:
            raise Refused(f"request failed: {error}") from error
        asked = request.federation_relationships
        output.print_result(form.value, response, pretty=lambda: _print_changes("create", response, asked))

    return calling(flags, act)


def update(flags: FlagSet) -> Run:
    fields = FederationFlags(flags)
    form = output.add_flag(flags)

    async def act(server: Channel) -> None:
        request = api.BatchUpdateFederationRelationshipRequest(federation_relationships=fields.relationships())
        try:
            response = await server.unary(
                f"{SERVICE}/BatchUpdateFederationRelationship", request, api.BatchUpdateFederationRelationshipResponse
            )
        except SpireError as error:
            raise Refused(f"request failed: {error}") from error
        asked = request.federation_relationships
        output.print_result(form.value, response, pretty=lambda: _print_changes("update", response, asked))

    return calling(flags, act)


def delete(flags: FlagSet) -> Run:
    trust_domain = flags.string(
        "id", "", "Trust domain to forget, e.g. spiffe://other.test; its bundle stays. Required"
    )
    form = output.add_flag(flags)

    async def act(server: Channel) -> None:
        if not trust_domain.value:
            raise InvalidArgument("-id is required")
        request = api.BatchDeleteFederationRelationshipRequest(trust_domains=[trust_domain.value])
        try:
            response = await server.unary(
                f"{SERVICE}/BatchDeleteFederationRelationship", request, api.BatchDeleteFederationRelationshipResponse
            )
        except SpireError as error:
            raise Refused(f"failed to delete federation relationship: {error}") from error
        output.print_result(form.value, response, pretty=lambda: _print_deletion(response))

    return calling(flags, act)


def list_all(flags: FlagSet) -> Run:
    form = output.add_flag(flags)

    async def act(server: Channel) -> None:
        try:
            found = await _all(server)
        except SpireError as error:
            raise Refused(f"error listing federation relationship: {error}") from error
        output.print_result(form.value, found, pretty=lambda: _print_list(found.federation_relationships))

    return calling(flags, act)


def show(flags: FlagSet) -> Run:
    trust_domain = flags.string("trustDomain", "", "Trust domain of the relationship, e.g. other.test; required")
    form = output.add_flag(flags)

    async def act(server: Channel) -> None:
        if not trust_domain.value:
            raise InvalidArgument("-trustDomain is required")
        request = api.GetFederationRelationshipRequest(trust_domain=trust_domain.value)
        try:
            found = await server.unary(f"{SERVICE}/GetFederationRelationship", request, types.FederationRelationship)
        except SpireError as error:
            raise Refused(f"error showing federation relationship: {error}") from error
        output.print_result(form.value, found, pretty=lambda: _print_one(found, trust_domain.value))

    return calling(flags, act)


def refresh(flags: FlagSet) -> Run:
    trust_domain = flags.string("id", "", "Trust domain whose bundle to fetch now, e.g. spiffe://other.test; required")
    form = output.add_flag(flags)

    async def act(server: Channel) -> None:
        if not trust_domain.value:
            raise InvalidArgument("-id is required")
        try:
            await server.unary(
                f"{SERVICE}/RefreshBundle", api.RefreshBundleRequest(trust_domain=trust_domain.value), empty_pb2.Empty
            )
        except RpcError as error:
            if error.code is Code.NOT_FOUND:
                reason = f"there is no federation relationship with trust domain {quote(trust_domain.value)}"
                raise NotFound(reason) from error
            raise Refused(f"failed to refresh bundle: {error}") from error
        done = status_pb2.Status(code=int(Code.OK), message="OK")
        output.print_result(form.value, done, pretty=lambda: print("Bundle refreshed"))

    return calling(flags, act)


async def _all(server: Channel) -> api.ListFederationRelationshipsResponse:
    request = api.ListFederationRelationshipsRequest(page_size=PAGE)
    found = api.ListFederationRelationshipsResponse()
    while True:
        page = await server.unary(
            f"{SERVICE}/ListFederationRelationships", request, api.ListFederationRelationshipsResponse
        )
        found.federation_relationships.extend(page.federation_relationships)
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


def _print_changes(verb: str, response: Changes, asked: Sequence[types.FederationRelationship]) -> None:
    """What was refused is printed as it was asked for: the server does not send it back."""
    for result in response.results:
        if not result.status.code:
            print()
            _print_relationship(result.federation_relationship)
    failed = [(result, each) for result, each in zip(response.results, asked, strict=False) if result.status.code]
    for result, relationship in failed:
        reason = f"code: {Code(result.status.code).label}, msg: {quote(result.status.message)}"
        print()
        print(f"Failed to {verb} the following federation relationship ({reason}):", file=sys.stderr)
        _print_relationship(relationship, sys.stderr)
    if failed:
        raise Refused(f"failed to {verb} one or more federation relationships")


def _print_deletion(response: api.BatchDeleteFederationRelationshipResponse) -> None:
    for result in response.results:
        if result.status.code:
            reason = f"{quote(result.trust_domain)}: {result.status.message}"
            raise Refused(f"failed to delete federation relationship {reason}")
        print("federation relationship deleted.")


def _print_list(relationships: Sequence[types.FederationRelationship]) -> None:
    noun = "federation relationship" if len(relationships) == 1 else "federation relationships"
    print(f"Found {len(relationships)} {noun}")
    for relationship in relationships:
        print()
        _print_relationship(relationship)


def _print_one(relationship: types.FederationRelationship, trust_domain: str) -> None:
    print(f"Found a federation relationship with trust domain {trust_domain}:\n")
    _print_relationship(relationship)


def _print_relationship(relationship: types.FederationRelationship, file: TextIO | None = None) -> None:
    lines = [("Trust domain", relationship.trust_domain), ("Bundle endpoint URL", relationship.bundle_endpoint_url)]
    profile = relationship.WhichOneof("bundle_endpoint_profile")
    if profile is not None:
        lines.append(("Bundle endpoint profile", profile))
    if profile == "https_spiffe":
        lines.append(("Endpoint SPIFFE ID", relationship.https_spiffe.endpoint_spiffe_id))
    for label, value in lines:
        print(f"{label:25} : {value}", file=file or sys.stdout)
