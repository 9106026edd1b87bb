"""CredentialComposer "uniqueid": subjects of workloads that differ where their SPIFFE IDs do.

RFC 5280, 4.1.2.6 wants a subject to be unique for each entity that an issuer certifies, and every workload of a server
is C=US, O=SPIRE. This adds an x500UniqueIdentifier (2.5.4.45): half of the SHA-256 of the SPIFFE ID, in hex.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from plugins.credentialcomposer import (
    AttributeTypeAndValue,
    CredentialComposer,
    JwtSvidAttributes,
    X509CaAttributes,
    X509SvidAttributes,
)

if TYPE_CHECKING:
    from plugins.catalog import PluginContext

NAME = "uniqueid"
OID = "2.5.4.45"


class Configuration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """It has no settings."""


class UniqueId:
    """Touches workloads' X509-SVIDs only."""

    @property
    def name(self) -> str:
        return NAME

    async def server_x509_ca(self, attributes: X509CaAttributes) -> X509CaAttributes:
        return attributes

    async def server_x509_svid(self, attributes: X509SvidAttributes) -> X509SvidAttributes:
        return attributes

    async def agent_x509_svid(
        self, spiffe_id: str, public_key: bytes, attributes: X509SvidAttributes
    ) -> X509SvidAttributes:
        del spiffe_id, public_key
        return attributes

    async def workload_x509_svid(
        self, spiffe_id: str, public_key: bytes, attributes: X509SvidAttributes
    ) -> X509SvidAttributes:
        del public_key
        subject = attributes.subject
        others = tuple(each for each in subject.extra_names if each.oid != OID)
        unique = AttributeTypeAndValue(OID, unique_id(spiffe_id))
        return replace(attributes, subject=replace(subject, extra_names=(*others, unique)))

    async def workload_jwt_svid(self, spiffe_id: str, attributes: JwtSvidAttributes) -> JwtSvidAttributes:
        del spiffe_id
        return attributes


def unique_id(spiffe_id: str) -> str:
    """32 hex digits that stand for a SPIFFE ID."""
    return hashlib.sha256(spiffe_id.encode()).hexdigest()[:32]


async def load(_configuration: Configuration, _context: PluginContext) -> CredentialComposer:
    return UniqueId()
