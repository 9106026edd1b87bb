"""Federation relationships as `federation create` and `update` get them: by flags, or from a JSON file."""

from __future__ import annotations

from dataclasses import dataclass

from generated.spire.api.types import bundle_pb2
from generated.spire.api.types import federationrelationship_pb2 as types
from identity.spiffeid import SpiffeId
from operations.errors import InvalidArgument
from operations.flags import FlagSet
from operations.quoting import quote
from server.cli import bundle_text

HTTPS_WEB = "https_web"
HTTPS_SPIFFE = "https_spiffe"


class FederationFlags:
    def __init__(self, flags: FlagSet) -> None:
        self._trust_domain = flags.string("trustDomain", "", "Trust domain to federate with, e.g. other.test")
        self._url = flags.string("bundleEndpointURL", "", "Where its bundle is served: an https URL")
        self._profile = flags.string(
            "bundleEndpointProfile",
            "",
            "How that endpoint proves itself: https_web (a certificate that any browser takes) or https_spiffe (an "
            "X509-SVID)",
        )
        self._endpoint_spiffe_id = flags.string(
            "endpointSpiffeID", "", "The endpoint's SPIFFE ID; for the profile https_spiffe only"
        )
        self._bundle_path = flags.string(
            "trustDomainBundlePath", "", "File with the trust domain's bundle, to begin with. Optional"
        )
        self._bundle_format = flags.string(
            "trustDomainBundleFormat", bundle_text.PEM, "Form of that file: pem (X.509 only) or spiffe (JWKS)"
        )
        self._data = flags.string(
            "data",
            "",
            'JSON file with relationships, {"federationRelationships": [{"trustDomain": "..."}]}, in place of the '
            "other flags; - reads standard input",
        )
        self._texts = (self._trust_domain, self._url, self._profile, self._endpoint_spiffe_id, self._bundle_path)

    def relationships(self) -> list[types.FederationRelationship]:
        """What the server is asked for. Raises InvalidArgument."""
        if not self._data.value:
            return [self._one()]
        if any(flag.value for flag in self._texts) or self._bundle_format.value != bundle_text.PEM:
            raise InvalidArgument("cannot use other flags to specify relationship fields when 'data' flag is set")
        from server.cli import federation_file  # imports msgspec, which the other commands do not need

        return federation_file.read(self._data.value)

    def _one(self) -> types.FederationRelationship:
        relationship = Relationship(
            self._trust_domain.value, self._url.value, self._profile.value, self._endpoint_spiffe_id.value
        )
        message = relationship.to_proto()
        if self._bundle_path.value:
            bundle = self._bundle(relationship.endpoint_trust_domain())
            message.trust_domain_bundle.CopyFrom(bundle)
        return message

    def _bundle(self, trust_domain: str) -> bundle_pb2.Bundle:
        try:
            content = bundle_text.read(self._bundle_path.value)
        except InvalidArgument as error:
            raise InvalidArgument(f"cannot read bundle file: {error}") from error
        try:
            return bundle_text.parse(content, bundle_text.chosen(self._bundle_format.value), trust_domain)
        except InvalidArgument as error:
            raise InvalidArgument(f"cannot parse bundle file: {error}") from error


@dataclass(frozen=True, slots=True)
class Relationship:
    """A relationship without its bundle, as texts."""

    trust_domain: str
    url: str
    profile: str
    endpoint_spiffe_id: str

    def to_proto(self) -> types.FederationRelationship:
        """Raises InvalidArgument for what is missing; the server checks the rest."""
        if not self.trust_domain:
            raise InvalidArgument("trust domain is required")
        if not self.url:
            raise InvalidArgument("bundle endpoint URL is required")
        message = types.FederationRelationship(trust_domain=self.trust_domain, bundle_endpoint_url=self.url)
        if self.profile == HTTPS_WEB:
            message.https_web.SetInParent()
        elif self.profile == HTTPS_SPIFFE:
            self.endpoint_trust_domain()
            message.https_spiffe.endpoint_spiffe_id = self.endpoint_spiffe_id
        else:
            raise InvalidArgument(
                f"unknown bundle endpoint profile type: {quote(self.profile)}; use {HTTPS_WEB} or {HTTPS_SPIFFE}"
            )
        return message

    def endpoint_trust_domain(self) -> str:
        """Whose bundle comes with it: under https_spiffe the endpoint's, which the server holds to be the same."""
        if self.profile != HTTPS_SPIFFE:
            return self.trust_domain
        if not self.endpoint_spiffe_id:
            raise InvalidArgument("endpoint SPIFFE ID is required if 'https_spiffe' endpoint profile is set")
        try:
            return SpiffeId.parse(self.endpoint_spiffe_id).trust_domain.name
        except InvalidArgument as error:
            raise InvalidArgument(f"cannot parse bundle endpoint SPIFFE ID: {error}") from error
