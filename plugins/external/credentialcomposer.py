"""CredentialComposer plugins."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, TypeVar

from google.protobuf import json_format, struct_pb2
from google.protobuf.message import Message

from generated.spire.plugin.server.credentialcomposer.v1 import credentialcomposer_pb2 as api
from operations import errors
from plugins.credentialcomposer import (
    AttributeTypeAndValue,
    DistinguishedName,
    JwtSvidAttributes,
    X509CaAttributes,
    X509Extension,
    X509SvidAttributes,
)
from plugins.external.plugin import Plugin
from transport.status import Code, RpcError

R = TypeVar("R", bound=Message)

TIMEOUT: Final = 30.0
"""Seconds of one call. SPIRE leaves it to whoever waits for the credential."""

_LISTS: Final = (
    "country", "organization", "organizational_unit", "locality", "province", "street_address", "postal_code",
)  # fmt: skip


class Unsupported(RpcError, errors.Unsupported):
    """The plugin leaves this kind of credential alone."""


class ExternalCredentialComposer:
    """An answer without attributes leaves them as they are."""

    SERVICE: Final = "spire.plugin.server.credentialcomposer.v1.CredentialComposer"

    def __init__(self, plugin: Plugin) -> None:
        self._plugin = plugin

    @property
    def name(self) -> str:
        return self._plugin.name

    async def server_x509_ca(self, attributes: X509CaAttributes) -> X509CaAttributes:
        """Raises RpcError."""
        message = api.X509CAAttributes(
            subject=_subject(attributes.subject),
            policy_identifiers=attributes.policy_identifiers,
            extra_extensions=_extensions(attributes.extra_extensions),
        )
        request = api.ComposeServerX509CARequest(attributes=message)
        answer = await self._call("ComposeServerX509CA", request, api.ComposeServerX509CAResponse)
        if not answer.HasField("attributes"):
            return attributes
        found = answer.attributes
        return X509CaAttributes(
            self._subject_of(found, "X509CA"),
            tuple(found.policy_identifiers),
            _extensions_of(found.extra_extensions),
        )

    async def server_x509_svid(self, attributes: X509SvidAttributes) -> X509SvidAttributes:
        """Raises RpcError."""
        request = api.ComposeServerX509SVIDRequest(attributes=_svid(attributes))
        answer = await self._call("ComposeServerX509SVID", request, api.ComposeServerX509SVIDResponse)
        return self._svid_of(answer.attributes) if answer.HasField("attributes") else attributes

    async def agent_x509_svid(
        self, spiffe_id: str, public_key: bytes, attributes: X509SvidAttributes
    ) -> X509SvidAttributes:
        """Raises RpcError."""
        request = api.ComposeAgentX509SVIDRequest(
            attributes=_svid(attributes), spiffe_id=spiffe_id, public_key=public_key
        )
        answer = await self._call("ComposeAgentX509SVID", request, api.ComposeAgentX509SVIDResponse)
        return self._svid_of(answer.attributes) if answer.HasField("attributes") else attributes

    async def workload_x509_svid(
        self, spiffe_id: str, public_key: bytes, attributes: X509SvidAttributes
    ) -> X509SvidAttributes:
        """Raises RpcError."""
        request = api.ComposeWorkloadX509SVIDRequest(
            attributes=_svid(attributes), spiffe_id=spiffe_id, public_key=public_key
        )
        answer = await self._call("ComposeWorkloadX509SVID", request, api.ComposeWorkloadX509SVIDResponse)
        return self._svid_of(answer.attributes) if answer.HasField("attributes") else attributes

    async def workload_jwt_svid(self, spiffe_id: str, attributes: JwtSvidAttributes) -> JwtSvidAttributes:
        """Numbers go over as doubles, as JSON has them. Raises RpcError."""
        try:
            claims = json_format.ParseDict(_json(attributes.claims), struct_pb2.Struct())
        except (json_format.ParseError, ValueError) as error:
            raise self._plugin.error(Code.INTERNAL, f"invalid workload JWTSVID attributes: {error}") from error
        request = api.ComposeWorkloadJWTSVIDRequest(
            spiffe_id=spiffe_id, attributes=api.JWTSVIDAttributes(claims=claims)
        )
        answer = await self._call("ComposeWorkloadJWTSVID", request, api.ComposeWorkloadJWTSVIDResponse)
        if not answer.HasField("attributes"):
            return attributes
        try:
            return JwtSvidAttributes(json_format.MessageToDict(answer.attributes.claims))
        except (json_format.SerializeToJsonError, ValueError) as error:
            raise self._invalid("JWTSVID", f"claims: {error}") from error

    async def _call(self, method: str, request: Message, response: type[R]) -> R:
        try:
            return await self._plugin.call(f"/{self.SERVICE}/{method}", request, response, timeout=TIMEOUT)
        except RpcError as error:
            if error.code is Code.UNIMPLEMENTED:
                raise Unsupported(error.code, error.message, error.details) from error
            raise

    def _svid_of(self, found: api.X509SVIDAttributes) -> X509SvidAttributes:
        return X509SvidAttributes(
            self._subject_of(found, "X509SVID"), tuple(found.dns_sans), _extensions_of(found.extra_extensions)
        )

    def _subject_of(self, found: api.X509CAAttributes | api.X509SVIDAttributes, what: str) -> DistinguishedName:
        if not found.HasField("subject"):
            raise self._invalid(what, "subject: cannot be empty")
        subject = found.subject
        return DistinguishedName(
            **{name: tuple(getattr(subject, name)) for name in _LISTS},
            serial_number=subject.serial_number,
            common_name=subject.common_name,
            extra_names=tuple(AttributeTypeAndValue(each.oid, each.string_value) for each in subject.extra_names),
        )

    def _invalid(self, what: str, reason: str) -> RpcError:
        return self._plugin.error(Code.INTERNAL, f"plugin returned invalid {what} attributes: {reason}")


def _svid(attributes: X509SvidAttributes) -> api.X509SVIDAttributes:
    return api.X509SVIDAttributes(
        subject=_subject(attributes.subject),
        dns_sans=attributes.dns_names,
        extra_extensions=_extensions(attributes.extra_extensions),
    )


def _subject(name: DistinguishedName) -> api.DistinguishedName:
    return api.DistinguishedName(
        **{each: getattr(name, each) for each in _LISTS},
        serial_number=name.serial_number,
        common_name=name.common_name,
        extra_names=[api.AttributeTypeAndValue(oid=each.oid, string_value=each.value) for each in name.extra_names],
    )


def _extensions(extensions: Sequence[X509Extension]) -> list[api.X509Extension]:
    return [api.X509Extension(oid=each.oid, value=each.value, critical=each.critical) for each in extensions]


def _extensions_of(extensions: Sequence[api.X509Extension]) -> tuple[X509Extension, ...]:
    return tuple(X509Extension(each.oid, each.value, each.critical) for each in extensions)


def _json(claims: Any) -> Any:
    """Claims with lists for tuples, which a Struct does not take."""
    return json.loads(json.dumps(claims))
