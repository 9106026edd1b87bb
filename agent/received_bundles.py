"""Bundles as a server sends them: what cannot be one of the trust domain in question is refused."""

from __future__ import annotations

from generated.spire.api.types import bundle_pb2
from identity.bundles import Bundle
from identity.spiffeid import TrustDomain
from operations.errors import InvalidArgument, Refused


def bundle_of(message: bundle_pb2.Bundle, trust_domain: TrustDomain) -> Bundle:
    """Raises InvalidArgument for what cannot be understood, Refused for another trust domain's bundle."""
    bundle = Bundle.from_proto(message)
    if bundle.trust_domain != trust_domain:
        raise Refused(
            f'the server sent the bundle of trust domain "{bundle.trust_domain}" for that of "{trust_domain}"'
        )
    bundle.validate()
    return bundle


def own_bundle(message: bundle_pb2.Bundle, trust_domain: TrustDomain) -> Bundle:
    """The bundle of the agent's own trust domain, by which it knows its server: one without authorities is refused.

    Raises InvalidArgument and Refused.
    """
    bundle = bundle_of(message, trust_domain)
    if not bundle.x509_authorities:
        raise InvalidArgument("the server sent a bundle without X.509 authorities")
    return bundle
