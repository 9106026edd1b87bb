"""The federation block: where this trust domain's bundle is served, and where those of others are fetched."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from identity.spiffeid import SpiffeId, TrustDomain

DEFAULT_REFRESH_HINT = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class ServingFiles:
    """Certificate and key in PEM files that are looked at again after each interval."""

    cert_file_path: str
    key_file_path: str
    file_sync_interval: timedelta


@dataclass(frozen=True, slots=True)
class Acme:
    """An account that certificates are ordered with (RFC 8555). No `directory_url` means Let's Encrypt's."""

    directory_url: str
    domain_name: str
    email: str
    tos_accepted: bool


@dataclass(frozen=True, slots=True)
class HttpsSpiffe:
    """The endpoint shows the server's own X509-SVID."""


HttpsWeb = ServingFiles | Acme
"""The endpoint shows a certificate of the web's CAs."""


@dataclass(frozen=True, slots=True)
class BundleEndpoint:
    address: str
    port: int
    refresh_hint: timedelta
    profile: HttpsSpiffe | HttpsWeb


@dataclass(frozen=True, slots=True)
class Federated:
    """Another trust domain's bundle endpoint. With an `endpoint_id` it is https_spiffe, without it https_web."""

    trust_domain: TrustDomain
    url: str
    endpoint_id: SpiffeId | None = None


@dataclass(frozen=True, slots=True)
class Federation:
    bundle_endpoint: BundleEndpoint | None = None
    federates_with: tuple[Federated, ...] = ()
