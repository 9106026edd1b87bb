"""Credential composers at work: attributes go out to each in turn, and what comes back is turned into DER."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from cryptography import x509

from identity.spiffeid import SpiffeId
from operations.errors import InvalidArgument, Refused, Unsupported
from plugins.credentialcomposer import (
    CredentialComposer,
    JwtSvidAttributes,
    X509CaAttributes,
    X509Extension,
    X509SvidAttributes,
)
from server.ca import dns, names
from server.ca.checks import Kind, X509Request
from server.ca.template import Extension

_A = TypeVar("_A")


@dataclass(frozen=True, slots=True)
class CaContent:
    """What an X.509 authority says besides its key and lifetime."""

    subject: x509.Name
    policies: tuple[str, ...] = ()
    extensions: tuple[X509Extension, ...] = ()


@dataclass(frozen=True, slots=True)
class SvidContent:
    """What an X509-SVID says besides its ID, key and lifetime. `subject` is DER."""

    subject: bytes
    dns_names: tuple[str, ...]
    extensions: tuple[Extension, ...] = ()


class Composers:
    """Raises, besides what the composers raise, Refused for attributes that no credential can hold."""

    def __init__(self, composers: Sequence[CredentialComposer] = ()) -> None:
        self._composers = tuple(composers)

    def __bool__(self) -> bool:
        return bool(self._composers)

    async def x509_ca(self, subject: x509.Name) -> CaContent:
        if not self._composers:
            return CaContent(subject)
        attributes = X509CaAttributes(names.to_distinguished_name(subject))
        attributes = await self._ask(attributes, lambda composer: composer.server_x509_ca)
        try:
            content = CaContent(
                names.from_distinguished_name(attributes.subject),
                attributes.policy_identifiers,
                attributes.extra_extensions,
            )
            for oid in content.policies:
                x509.ObjectIdentifier(oid)
            encoded(content.extensions)
        except ValueError as error:
            raise Refused(f"a credential composer returned invalid X509CA attributes: {error}") from error
        return content

    async def x509_svid(self, request: X509Request) -> SvidContent:
        attributes = X509SvidAttributes(names.to_distinguished_name(request.name), request.dns_names)
        attributes = await self._ask(attributes, lambda composer: _hook(composer, request))
        try:
            subject = names.from_distinguished_name(attributes.subject).public_bytes()
            for name in attributes.dns_names:
                dns.check_dns_name(name)
            return SvidContent(subject, attributes.dns_names, encoded(attributes.extra_extensions))
        except (ValueError, InvalidArgument) as error:
            raise Refused(f"a credential composer returned invalid X509SVID attributes: {error}") from error

    async def jwt_svid(self, spiffe_id: SpiffeId, claims: Mapping[str, Any]) -> Mapping[str, Any]:
        """The claims to sign. Whole times come back as integers, whatever a plugin's transport made of them."""
        attributes = await self._ask(
            JwtSvidAttributes(claims),
            lambda composer: lambda each: composer.workload_jwt_svid(str(spiffe_id), each),
        )
        times = {name: value for name in ("iat", "exp") if isinstance(value := attributes.claims.get(name), float)}
        return {**attributes.claims, **{name: int(value) for name, value in times.items()}}

    async def _ask(self, attributes: _A, hook: Callable[[CredentialComposer], Callable[[_A], Awaitable[_A]]]) -> _A:
        for composer in self._composers:
            try:
                attributes = await hook(composer)(attributes)
            except Unsupported:
                continue  # the composer leaves this kind of credential alone
        return attributes


def encoded(extensions: Sequence[X509Extension]) -> tuple[Extension, ...]:
    """Raises ValueError for what is no extension, and for two of a type."""
    if len({each.oid for each in extensions}) != len(extensions):
        raise ValueError("two extensions have the same object identifier")
    return tuple(Extension.of(each.oid, each.value, critical=each.critical) for each in extensions)


def _hook(
    composer: CredentialComposer, request: X509Request
) -> Callable[[X509SvidAttributes], Awaitable[X509SvidAttributes]]:
    spiffe_id, public_key = str(request.spiffe_id), request.public_key
    match request.kind:
        case Kind.SERVER:
            return composer.server_x509_svid
        case Kind.AGENT:
            return lambda attributes: composer.agent_x509_svid(spiffe_id, public_key, attributes)
        case Kind.WORKLOAD:
            return lambda attributes: composer.workload_x509_svid(spiffe_id, public_key, attributes)
