"""Bundles as plugins get them (spire.plugin.types.Bundle)."""

from __future__ import annotations

from generated.spire.plugin.types import bundle_pb2, jwtkey_pb2, witkey_pb2, x509certificate_pb2
from identity.bundles import Bundle


def to_plugin(bundle: Bundle) -> bundle_pb2.Bundle:
    return bundle_pb2.Bundle(
        trust_domain=bundle.trust_domain.name,
        x509_authorities=[
            x509certificate_pb2.X509Certificate(asn1=each.der, tainted=each.tainted) for each in bundle.x509_authorities
        ],
        jwt_authorities=[
            jwtkey_pb2.JWTKey(
                public_key=each.public_key, key_id=each.key_id, expires_at=each.expires_at, tainted=each.tainted
            )
            for each in bundle.jwt_authorities
        ],
        refresh_hint=bundle.refresh_hint,
        sequence_number=bundle.sequence_number,
        wit_authorities=[
            witkey_pb2.WITKey(
                public_key=each.public_key, key_id=each.key_id, expires_at=each.expires_at, tainted=each.tainted
            )
            for each in bundle.wit_authorities
        ],
    )
