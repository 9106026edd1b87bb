"""Credential composers (spire.plugin.server.credentialcomposer.v1): the last word on what a credential says.

A composer gets the attributes that a credential is about to be signed with and returns those it is to have. Several
are asked one after the other, in the order of the configuration. What comes out is checked before it is signed: no
composer can make a workload a CA, or give it another SPIFFE ID.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class AttributeTypeAndValue:
    """A further attribute of a name: a dotted object identifier, and its value as text."""

    oid: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DistinguishedName:
    """A subject, as the plugin API has it. Attributes in `extra_names` replace those of the same type."""

    country: tuple[str, ...] = ()
    organization: tuple[str, ...] = ()
    organizational_unit: tuple[str, ...] = ()
    locality: tuple[str, ...] = ()
    province: tuple[str, ...] = ()
    street_address: tuple[str, ...] = ()
    postal_code: tuple[str, ...] = ()
    serial_number: str = ""
    common_name: str = ""
    extra_names: tuple[AttributeTypeAndValue, ...] = ()


@dataclass(frozen=True, slots=True)
class X509Extension:
    """A further extension: a dotted object identifier and the DER of its value."""

    oid: str
    value: bytes
    critical: bool = False


@dataclass(frozen=True, slots=True)
class X509CaAttributes:
    """Of an X.509 authority. Policies are dotted object identifiers (RFC 5280, 4.2.1.4)."""

    subject: DistinguishedName
    policy_identifiers: tuple[str, ...] = ()
    extra_extensions: tuple[X509Extension, ...] = ()


@dataclass(frozen=True, slots=True)
class X509SvidAttributes:
    """Of an X509-SVID. An extension of a type that SVIDs have anyway replaces it."""

    subject: DistinguishedName
    dns_names: tuple[str, ...] = ()
    extra_extensions: tuple[X509Extension, ...] = ()


@dataclass(frozen=True, slots=True)
class JwtSvidAttributes:
    """Of a JWT-SVID: all its claims, as JSON values."""

    claims: Mapping[str, Any]


class CredentialComposer(Protocol):
    """Each call returns the attributes to use, or raises Unsupported to leave that kind of credential alone.

    Any other SpireError keeps the credential from being issued. Public keys are DER SubjectPublicKeyInfos.
    """

    @property
    def name(self) -> str: ...

    async def server_x509_ca(self, attributes: X509CaAttributes) -> X509CaAttributes:
        """For the server's own authority, and for those of servers below it."""
        ...

    async def server_x509_svid(self, attributes: X509SvidAttributes) -> X509SvidAttributes: ...

    async def agent_x509_svid(
        self, spiffe_id: str, public_key: bytes, attributes: X509SvidAttributes
    ) -> X509SvidAttributes: ...

    async def workload_x509_svid(
        self, spiffe_id: str, public_key: bytes, attributes: X509SvidAttributes
    ) -> X509SvidAttributes: ...

    async def workload_jwt_svid(self, spiffe_id: str, attributes: JwtSvidAttributes) -> JwtSvidAttributes: ...
