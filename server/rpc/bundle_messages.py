"""Bundles between the API's messages and the datastore. What comes in is checked; texts and fields are SPIRE's."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

from generated.spire.api.types import bundle_pb2
from identity import der
from identity.bundles import Bundle, JwtAuthority, WitAuthority, X509Authority
from identity.spiffeid import TrustDomain
from operations.errors import InvalidArgument
from server.rpc.pacing import paced

_K = TypeVar("_K", JwtAuthority, WitAuthority)


async def bundle_from_proto(message: bundle_pb2.Bundle) -> Bundle:
    """A foreign trust domain's bundle. Raises InvalidArgument.

    That an authority is tainted is known to its own server only, so the mark is not taken over.
    """
    try:
        trust_domain = TrustDomain.parse(message.trust_domain)
    except InvalidArgument as error:
        raise InvalidArgument(f"invalid trust domain: {error}") from error
    try:
        x509_authorities = await x509_authorities_from_proto(message.x509_authorities)
    except InvalidArgument as error:
        raise InvalidArgument(f"unable to parse X.509 authority: {error}") from error
    try:
        jwt_authorities = await jwt_authorities_from_proto(message.jwt_authorities)
    except InvalidArgument as error:
        raise InvalidArgument(f"unable to parse JWT authority: {error}") from error
    try:
        wit_authorities = await wit_authorities_from_proto(message.wit_authorities)
    except InvalidArgument as error:
        raise InvalidArgument(f"unable to parse WIT authority: {error}") from error
    return Bundle(
        trust_domain,
        x509_authorities,
        jwt_authorities,
        message.refresh_hint,
        message.sequence_number,
        wit_authorities,
    )


async def x509_authorities_from_proto(messages: Sequence[bundle_pb2.X509Certificate]) -> tuple[X509Authority, ...]:
    """Each once. Raises InvalidArgument."""
    return tuple(dict.fromkeys(await paced(_x509_authority, messages)))


async def jwt_authorities_from_proto(messages: Sequence[bundle_pb2.JWTKey]) -> tuple[JwtAuthority, ...]:
    """Each once. Raises InvalidArgument, also for two keys with the same ID."""
    return _unique(await paced(_jwt_authority, messages))


async def wit_authorities_from_proto(messages: Sequence[bundle_pb2.WITKey]) -> tuple[WitAuthority, ...]:
    """As `jwt_authorities_from_proto`."""
    return _unique(await paced(_wit_authority, messages))


def _unique(authorities: Sequence[_K]) -> tuple[_K, ...]:
    found: dict[str, _K] = {}
    for authority in authorities:
        if found.setdefault(authority.key_id, authority).public_key != authority.public_key:
            raise InvalidArgument(f'two keys have the key ID "{authority.key_id}"')
    return tuple(found.values())


def _x509_authority(message: bundle_pb2.X509Certificate) -> X509Authority:
    der.certificate(message.asn1)
    return X509Authority(message.asn1)


def _jwt_authority(message: bundle_pb2.JWTKey) -> JwtAuthority:
    _check_key(message)
    return JwtAuthority(message.key_id, message.public_key, message.expires_at)


def _wit_authority(message: bundle_pb2.WITKey) -> WitAuthority:
    _check_key(message)
    return WitAuthority(message.key_id, message.public_key, message.expires_at)


def _check_key(message: bundle_pb2.JWTKey | bundle_pb2.WITKey) -> None:
    der.public_key(message.public_key)
    if not message.key_id:
        raise InvalidArgument("missing key ID")


def jwt_authorities_to_proto(authorities: Sequence[JwtAuthority]) -> list[bundle_pb2.JWTKey]:
    return [
        bundle_pb2.JWTKey(
            public_key=each.public_key, key_id=each.key_id, expires_at=each.expires_at, tainted=each.tainted
        )
        for each in authorities
    ]


def audit_fields(message: bundle_pb2.Bundle, mask: bundle_pb2.BundleMask | None = None) -> dict[str, object]:
    """What the audit log says of a bundle: of its authorities the hashes."""
    fields: dict[str, object] = {"trust_domain_id": message.trust_domain}
    if mask is None or mask.refresh_hint:
        fields["refresh_hint"] = message.refresh_hint
    if mask is None or mask.sequence_number:
        fields["sequence_number"] = message.sequence_number
    if mask is None or mask.jwt_authorities:
        for index, key in enumerate(message.jwt_authorities):
            fields.update((f"{name}.{index}", value) for name, value in jwt_authority_fields(key).items())
    if mask is None or mask.wit_authorities:
        for index, wit in enumerate(message.wit_authorities):
            fields[f"wit_authority_key_id.{index}"] = wit.key_id
            fields[f"wit_authority_public_key_sha256.{index}"] = _hash(wit.public_key)
    if mask is None or mask.x509_authorities:
        for index, authority in enumerate(message.x509_authorities):
            fields[f"x509_authorities_asn1_sha256.{index}"] = _hash(authority.asn1)
    return fields


def jwt_authority_fields(message: bundle_pb2.JWTKey) -> dict[str, object]:
    return {
        "jwt_authority_expires_at": message.expires_at,
        "jwt_authority_key_id": message.key_id,
        "jwt_authority_public_key_sha256": _hash(message.public_key),
    }


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if content else ""
