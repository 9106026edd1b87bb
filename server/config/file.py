"""Every key of a server's configuration file."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from operations.hcl import Body
from operations.sections import HealthChecks, Section, Telemetry


class CaSubject(Section, frozen=True, kw_only=True):
    country: tuple[str, ...] = ()
    organization: tuple[str, ...] = ()
    common_name: str = ""


class Acme(Section, frozen=True, kw_only=True):
    directory_url: str = ""
    domain_name: str = ""
    email: str = ""
    tos_accepted: bool = False


class ServingCertFile(Section, frozen=True, kw_only=True):
    cert_file_path: str = ""
    key_file_path: str = ""
    file_sync_interval: str = ""


class HttpsWeb(Section, frozen=True, kw_only=True):
    acme: Body | None = None
    serving_cert_file: Body | None = None


class HttpsSpiffe(Section, frozen=True, kw_only=True):
    pass


class EndpointProfile(Section, frozen=True, kw_only=True):
    https_spiffe: HttpsSpiffe | None = None
    https_web: HttpsWeb | None = None


class BundleEndpoint(Section, frozen=True, kw_only=True):
    """`acme` is an Acme, `profile` an EndpointProfile: read later, where a fault's place is known."""

    address: str = ""
    port: int = 0
    refresh_hint: str = ""
    acme: Body | None = None
    profile: Body | None = None


class FederatedHttpsSpiffe(Section, frozen=True, kw_only=True):
    endpoint_spiffe_id: str = ""


class FederatedHttpsWeb(Section, frozen=True, kw_only=True):
    pass


class FederatedProfile(Section, frozen=True, kw_only=True):
    https_spiffe: FederatedHttpsSpiffe | None = None
    https_web: FederatedHttpsWeb | None = None


class FederatesWith(Section, frozen=True, kw_only=True):
    """`bundle_endpoint_profile` is a FederatedProfile."""

    bundle_endpoint_url: str = ""
    bundle_endpoint_profile: Body | None = None


class Federation(Section, frozen=True, kw_only=True):
    """`federates_with` has a FederatesWith for each trust domain."""

    bundle_endpoint: BundleEndpoint | None = None
    federates_with: Mapping[str, Body] = {}


class RateLimit(Section, frozen=True, kw_only=True):
    attestation: bool | None = None
    signing: bool | None = None


class LocalPolicy(Section, frozen=True, kw_only=True):
    rego_path: str = ""
    policy_data_path: str = ""


class AuthPolicy(Section, frozen=True, kw_only=True):
    local: LocalPolicy | None = None


class Experimental(Section, frozen=True, kw_only=True):
    agent_spiffe_id_as_selector: bool = False
    auth_opa_policy_engine: AuthPolicy | None = None
    cache_reload_interval: str = ""
    full_cache_reload_interval: str = ""
    events_based_cache: bool = False
    prune_events_older_than: str = ""
    event_timeout: str = ""
    sql_transaction_timeout: str = ""
    require_pq_kem: bool = False
    wit_key_type: str = ""
    wit_issuer: str = ""
    feature_flags: tuple[str, ...] = ()
    named_pipe_name: str = ""


class ServerSection(Section, frozen=True, kw_only=True):
    admin_ids: tuple[str, ...] = ()
    agent_ttl: str = ""
    audit_log_enabled: bool = False
    bind_address: str = ""
    bind_port: int = 0
    ca_key_type: str = ""
    ca_subject: CaSubject | None = None
    ca_ttl: str = ""
    data_dir: str = ""
    default_x509_svid_ttl: str = ""
    default_jwt_svid_ttl: str = ""
    experimental: Experimental = Experimental()
    federation: Federation | None = None
    disable_jwt_svids: bool = False
    jwt_issuer: str = ""
    jwt_key_type: str = ""
    log_file: str = ""
    log_level: str = ""
    log_format: str = ""
    log_source_location: bool = False
    prune_attested_nodes_expired_for: str = ""
    prune_attested_nodes_batch_size: int = 0
    prune_tofu_nodes: bool = False
    proxy_protocol_trusted_cidrs: tuple[str, ...] = ()
    ratelimit: RateLimit = RateLimit()
    socket_path: str = ""
    trust_domain: str = ""
    max_attested_node_info_staleness: str | None = None
    profiling_enabled: bool = False
    profiling_port: int = 0
    profiling_freq: int = 0
    profiling_names: tuple[str, ...] = ()


class ServerFile(Section, frozen=True, kw_only=True):
    server: ServerSection | None = None
    plugins: Body | None = None
    telemetry: Telemetry = msgspec.field(default_factory=Telemetry)
    health_checks: HealthChecks = msgspec.field(default_factory=HealthChecks)
