"""Which authorities of a bundle have ended."""

from __future__ import annotations

from dataclasses import replace

from identity import der
from identity.bundles import Bundle
from operations.errors import Refused


def without_expired(bundle: Bundle, expires_before: int) -> Bundle:
    """The bundle without the authorities that end at that time (Unix seconds) or before; 0 means a key has no end.

    Raises Refused rather than drop all certificates or all JWT keys. WIT keys may all go: they end for good where
    the feature is turned off again.
    """
    x509 = tuple(
        authority
        for authority in bundle.x509_authorities
        if der.certificate(authority.der).not_valid_after_utc.timestamp() > expires_before
    )
    jwt = tuple(
        authority
        for authority in bundle.jwt_authorities
        if not authority.expires_at or authority.expires_at > expires_before
    )
    wit = tuple(
        authority
        for authority in bundle.wit_authorities
        if not authority.expires_at or authority.expires_at > expires_before
    )
    if bundle.x509_authorities and not x509:
        raise Refused("would prune all certificates")
    if bundle.jwt_authorities and not jwt:
        raise Refused("would prune all JWT signing keys")
    return replace(bundle, x509_authorities=x509, jwt_authorities=jwt, wit_authorities=wit)
