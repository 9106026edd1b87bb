"""Federation relationships: the record and the statements, which run inside a transaction of the worker.

A relationship says where the bundle of another trust domain is fetched from. The bundle itself stands with the others
in `bundles`; it may come before the relationship, and stays when that goes.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum
from typing import Any, Literal, get_args

from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy import Connection, Row, delete, insert, null, select, update

from generated.spire.api.types import bundle_pb2
from identity.bundles import Bundle
from identity.spiffeid import TrustDomain
from operations.errors import AlreadyExists, NotFound
from server.datastore import bundles, schema
from server.datastore.paging import first_page, page
from server.datastore.records import Changes, Page

FederationField = Literal["bundle_endpoint_url", "bundle_endpoint_profile", "trust_domain_bundle"]

ALL_FIELDS: frozenset[FederationField] = frozenset(get_args(FederationField))

_table = schema.federation_relationships
_relationships = select(_table, schema.bundles.c.data).outerjoin(
    schema.bundles, schema.bundles.c.trust_domain == _table.c.trust_domain
)
_without_bundles = select(_table, null().label("data"))


class Profile(Enum):
    """How a bundle endpoint proves who it is (SPIFFE Federation standard, section 5.2)."""

    HTTPS_WEB = "https_web"  # by a certificate of the Web's authorities
    HTTPS_SPIFFE = "https_spiffe"  # by an X509-SVID


class FederationRelationship(Struct, frozen=True, kw_only=True):
    """`endpoint_spiffe_id` is the endpoint's, under HTTPS_SPIFFE, and empty otherwise.

    `bundle` is the trust domain's, None where there is none, or none is to be stored.
    """

    trust_domain: TrustDomain
    bundle_endpoint_url: str
    profile: Profile
    endpoint_spiffe_id: str = ""
    bundle: Bundle | None = None


def create(connection: Connection, changes: Changes, new: FederationRelationship) -> FederationRelationship:
    """Store the relationship and the bundle that it brings, in the place of one there is. Raises AlreadyExists."""
    if fetch(connection, new.trust_domain) is not None:
        raise AlreadyExists(f'a federation relationship with trust domain "{new.trust_domain}" exists already')
    if new.bundle is not None:
        bundles.put(connection, changes, new.bundle)
    connection.execute(insert(_table).values(trust_domain=new.trust_domain.name, **_columns(new)))
    return new


def change(
    connection: Connection, changes: Changes, wanted: FederationRelationship, fields: Collection[FederationField]
) -> FederationRelationship:
    """Replace these fields; the relationship as it is then, with the bundle there is. Raises NotFound."""
    # Ignored by SQLite, where the writer is alone anyway. Not on the join, whose other side may be empty.
    connection.execute(select(_table.c.seq).where(_table.c.trust_domain == wanted.trust_domain.name).with_for_update())
    new = fetch(connection, wanted.trust_domain)
    if new is None:
        raise NotFound("federation relationship not found")
    if "bundle_endpoint_url" in fields:
        new = replace(new, bundle_endpoint_url=wanted.bundle_endpoint_url)
    if "bundle_endpoint_profile" in fields:
        new = replace(new, profile=wanted.profile, endpoint_spiffe_id=wanted.endpoint_spiffe_id)
    if "trust_domain_bundle" in fields and wanted.bundle is not None:
        new = replace(new, bundle=bundles.put(connection, changes, wanted.bundle))
    connection.execute(update(_table).where(_table.c.trust_domain == new.trust_domain.name).values(_columns(new)))
    return new


def fetch(connection: Connection, trust_domain: TrustDomain) -> FederationRelationship | None:
    row = connection.execute(_relationships.where(_table.c.trust_domain == trust_domain.name)).one_or_none()
    return _decode(row) if row is not None else None


def listing(
    connection: Connection, page_size: int, page_token: str, with_bundles: bool
) -> Page[FederationRelationship]:
    """A page of the relationships, oldest first."""
    query = _relationships if with_bundles else _without_bundles
    rows = connection.execute(page(query, _table.c.seq, page_size, page_token)).all()
    return first_page([(row.seq, _decode(row)) for row in rows], page_size)


def remove(connection: Connection, trust_domain: TrustDomain) -> None:
    """Delete the relationship, not the bundle. Raises NotFound."""
    done = connection.execute(delete(_table).where(_table.c.trust_domain == trust_domain.name))
    if not done.rowcount:
        raise NotFound("federation relationship not found")


def _columns(relationship: FederationRelationship) -> dict[str, str]:
    return {
        "bundle_endpoint_url": relationship.bundle_endpoint_url,
        "bundle_endpoint_profile": relationship.profile.value,
        "endpoint_spiffe_id": relationship.endpoint_spiffe_id,
    }


def _decode(row: Row[Any]) -> FederationRelationship:
    return FederationRelationship(
        trust_domain=TrustDomain(row.trust_domain),
        bundle_endpoint_url=row.bundle_endpoint_url,
        profile=Profile(row.bundle_endpoint_profile),
        endpoint_spiffe_id=row.endpoint_spiffe_id,
        bundle=None if row.data is None else Bundle.from_proto(bundle_pb2.Bundle.FromString(row.data)),
    )
