"""Every key of an agent's configuration file."""

from __future__ import annotations

import msgspec

from operations.hcl import Body
from operations.sections import HealthChecks, Section, Telemetry


class Sds(Section, frozen=True, kw_only=True):
    """The names of what Envoys ask for without knowing who they are, and whether they verify by a root CA alone."""

    default_svid_name: str = "default"
    default_bundle_name: str = "ROOTCA"
    default_all_bundles_name: str = "ALL"
    disable_spiffe_cert_validation: bool = False


class AllowedReferenceType(Section, frozen=True, kw_only=True):
    type_url: str = ""
    allow_over_tcp: bool = False


class BrokerEntry(Section, frozen=True, kw_only=True):
    id: str = ""
    allowed_reference_types: tuple[AllowedReferenceType, ...] = ()


class Broker(Section, frozen=True, kw_only=True):
    socket_path: str = ""
    bind_address: str = ""
    brokers: tuple[BrokerEntry, ...] = ()


class RateLimit(Section, frozen=True, kw_only=True):
    """Calls per second, and as many at once, for each set of selectors; unset or 0 means without limit."""

    fetch_x509_svid: int = 0
    fetch_jwt_svid: int = 0
    fetch_x509_bundles: int = 0
    fetch_jwt_bundles: int = 0
    stream_secrets: int = 0
    fetch_secrets: int = 0


class Experimental(Section, frozen=True, kw_only=True):
    sync_interval: str = ""
    jwt_svid_cache_hit_timeout: str = ""
    named_pipe_name: str = ""
    admin_named_pipe_name: str = ""
    use_sync_authorized_entries: bool | None = None
    require_pq_kem: bool = False
    ratelimit: RateLimit = RateLimit()
    broker: Broker | None = None
    feature_flags: tuple[str, ...] = ()


class AgentSection(Section, frozen=True, kw_only=True):
    data_dir: str = ""
    admin_socket_path: str = ""
    insecure_bootstrap: bool = False
    rebootstrap_mode: str = ""
    rebootstrap_delay: str = ""
    join_token: str = ""
    join_token_file: str = ""
    log_file: str = ""
    log_format: str = ""
    log_level: str = ""
    log_selectors: tuple[str, ...] = ()
    log_source_location: bool = False
    sds: Sds = Sds()
    server_address: str = ""
    server_port: int = 0
    socket_path: str = ""
    disable_workload_api: bool = False
    disable_sds_api: bool = False
    workload_x509_svid_key_type: str = ""
    trust_bundle_format: str = ""
    trust_bundle_path: str = ""
    trust_bundle_spiffe_workload_api: str = ""
    trust_bundle_unix_socket: str = ""
    trust_bundle_url: str = ""
    trust_domain: str = ""
    allow_unauthenticated_verifiers: bool = False
    allowed_foreign_jwt_claims: tuple[str, ...] = ()
    availability_target: str = ""
    x509_svid_cache_max_size: int = 0
    jwt_svid_cache_max_size: int = 0
    authorized_delegates: tuple[str, ...] = ()
    profiling_enabled: bool = False
    profiling_port: int = 0
    profiling_freq: int = 0
    profiling_names: tuple[str, ...] = ()
    experimental: Experimental = Experimental()


class AgentFile(Section, frozen=True, kw_only=True):
    agent: AgentSection | None = None
    plugins: Body | None = None
    telemetry: Telemetry = msgspec.field(default_factory=Telemetry)
    health_checks: HealthChecks = msgspec.field(default_factory=HealthChecks)
