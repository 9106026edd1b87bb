"""Federation relationships between the API's messages and the datastore. What comes in is checked."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from generated.spire.api.types import federationrelationship_pb2 as types
from identity.bundles import Bundle
from identity.spiffeid import SpiffeId, TrustDomain
from operations.errors import InvalidArgument
from server.datastore.federation import FederationRelationship, Profile
from server.rpc import bundle_messages, masks

MAX_URL = 2048

_BAD_ESCAPE = re.compile(r"%(?![0-9a-fA-F]{2})")


async def relationship_from_proto(message: types.FederationRelationship) -> FederationRelationship:
    """All of the message is checked, whatever a mask takes of it. Raises InvalidArgument."""
    try:
        trust_domain = TrustDomain.parse(message.trust_domain)
    except InvalidArgument as error:
        raise InvalidArgument(f"failed to parse trust domain: {error}") from error
    url = _endpoint_url(message.bundle_endpoint_url)
    profile, endpoint_spiffe_id = _profile(message)
    return FederationRelationship(
        trust_domain=trust_domain,
        bundle_endpoint_url=url,
        profile=profile,
        endpoint_spiffe_id=endpoint_spiffe_id,
        bundle=await _bundle(message, trust_domain) if message.HasField("trust_domain_bundle") else None,
    )


def _endpoint_url(url: str) -> str:
    if len(url) > MAX_URL:
        raise InvalidArgument(f"bundle endpoint URL is longer than {MAX_URL} characters")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise InvalidArgument("failed to parse bundle endpoint URL: percent-encode what is not printable ASCII")
    if _BAD_ESCAPE.search(url):
        raise InvalidArgument("failed to parse bundle endpoint URL: a percent sign needs two hexadecimal digits")
    try:
        parts = urlsplit(url)
        _ = parts.port  # parsed only when asked for
    except ValueError as error:
        raise InvalidArgument(f"failed to parse bundle endpoint URL: {error}") from error
    if parts.scheme != "https":
        raise InvalidArgument("bundle endpoint URL must use the https scheme")
    if "@" in parts.netloc:
        raise InvalidArgument("bundle endpoint URL must not contain user info")
    if not parts.hostname:
        raise InvalidArgument("bundle endpoint URL must specify the host")
    return parts.geturl()


def _profile(message: types.FederationRelationship) -> tuple[Profile, str]:
    """With the endpoint's SPIFFE ID, where the profile has one."""
    if message.HasField("https_web"):
        return Profile.HTTPS_WEB, ""
    if not message.HasField("https_spiffe"):
        raise InvalidArgument("unsupported bundle endpoint profile type: <nil>")
    try:
        return Profile.HTTPS_SPIFFE, str(SpiffeId.parse(message.https_spiffe.endpoint_spiffe_id))
    except InvalidArgument as error:
        raise InvalidArgument(f"failed to parse endpoint SPIFFE ID: {error}") from error


async def _bundle(message: types.FederationRelationship, trust_domain: TrustDomain) -> Bundle:
    try:
        bundle = await bundle_messages.bundle_from_proto(message.trust_domain_bundle)
    except InvalidArgument as error:
        raise InvalidArgument(f"failed to parse bundle: {error}") from error
    if bundle.trust_domain != trust_domain:
        raise InvalidArgument(
            f'trust domain bundle ("{message.trust_domain_bundle.trust_domain}") must match the trust domain of the '
            f'federation relationship ("{trust_domain}")'
        )
    return bundle


def relationship_to_proto(
    relationship: FederationRelationship, mask: types.FederationRelationshipMask | None
) -> types.FederationRelationship:
    """What the mask, which for None names all, leaves of it; the trust domain always."""
    message = types.FederationRelationship(
        trust_domain=relationship.trust_domain.name, bundle_endpoint_url=relationship.bundle_endpoint_url
    )
    if relationship.profile is Profile.HTTPS_SPIFFE:
        message.https_spiffe.endpoint_spiffe_id = relationship.endpoint_spiffe_id
    else:
        message.https_web.SetInParent()
    if relationship.bundle is not None:
        message.trust_domain_bundle.CopyFrom(relationship.bundle.to_proto())
    # The mask's name for the profile is that of the oneof, which ClearField takes too.
    masks.apply(message, mask)
    return message


def audit_fields(
    message: types.FederationRelationship, mask: types.FederationRelationshipMask | None = None
) -> dict[str, object]:
    fields: dict[str, object] = {}
    if message.trust_domain:
        fields["trust_domain_id"] = message.trust_domain
    if mask is None or mask.bundle_endpoint_url:
        fields["bundle_endpoint_url"] = message.bundle_endpoint_url
    if mask is None or mask.bundle_endpoint_profile:
        fields.update(_profile_fields(message))
    if (mask is None or mask.trust_domain_bundle) and message.HasField("trust_domain_bundle"):
        of_bundle = bundle_messages.audit_fields(message.trust_domain_bundle)
        fields.update((f"bundle_{name}", value) for name, value in of_bundle.items())
    return fields


def _profile_fields(message: types.FederationRelationship) -> dict[str, object]:
    if message.HasField("https_web"):
        return {"bundle_endpoint_profile": Profile.HTTPS_WEB.value}
    if message.HasField("https_spiffe"):
        return {
            "bundle_endpoint_profile": Profile.HTTPS_SPIFFE.value,
            "endpoint_spiffe_id": message.https_spiffe.endpoint_spiffe_id,
        }
    return {}
