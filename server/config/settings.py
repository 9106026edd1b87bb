"""What a server runs with: its file, over-ridden by its command line, checked, with the defaults put in."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from math import inf

import msgspec

from identity.spiffeid import SpiffeId, TrustDomain
from operations import duration, features, profiling_settings, sections, telemetry
from operations.checks import Checks
from operations.profiling_settings import Profiling
from operations.quoting import quote
from operations.sections import HealthChecks, Telemetry
from plugins.blocks import PluginBlock, read_section
from plugins.keymanager import KeyType
from server.config import caches, federation
from server.config.federation import Federation
from server.config.file import AuthPolicy, CaSubject, ServerFile, ServerSection
from server.config.ttl import ttl_warning
from server.policy.files import PolicyFiles

DEFAULT_PATH = "conf/server/server.conf"
DEFAULT_SOCKET_PATH = "/tmp/spire-server/private/api.sock"  # noqa: S108 SPIRE's default
DEFAULT_PORT = 8081
DEFAULT_CA_SUBJECT = CaSubject(country=("US",), organization=("SPIFFE",))
DEFAULT_CA_TTL = timedelta(hours=24)
DEFAULT_X509_SVID_TTL = timedelta(hours=1)
DEFAULT_JWT_SVID_TTL = timedelta(minutes=5)
DEFAULT_PRUNE_BATCH_SIZE = 1000

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NO_TRUST_DOMAIN = TrustDomain("none")

UNAVAILABLE: sections.Unavailable = {
    **sections.UNAVAILABLE,
    "server.experimental.named_pipe_name": "use socket_path",
}
"""Known settings without effect. What tunes SPIRE's caches and their events may stand in a file without harm:
entries are always current here."""


class Overrides(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says; a value that is not given leaves the file's."""

    bind_address: str = ""
    bind_port: int = 0
    data_dir: str = ""
    log_file: str = ""
    log_format: str = ""
    log_level: str = ""
    log_source_location: bool = False
    socket_path: str = ""
    trust_domain: str = ""


@dataclass(frozen=True, slots=True)
class NodePruning:
    """Agents whose SVID ended that long ago are forgotten, up to `batch_size` at a time.

    Without `tofu`, those that could not attest again by themselves stay.
    """

    expired_for: timedelta
    batch_size: int
    tofu: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """A server's settings, complete and valid. `warnings` are lines for the log."""

    file: str
    trust_domain: TrustDomain
    bind_address: str
    bind_port: int
    socket_path: str
    data_dir: str
    log_level: str
    log_format: str
    log_file: str | None
    log_source_location: bool
    audit_log_enabled: bool
    ca_ttl: timedelta
    ca_key_type: KeyType
    ca_subject: CaSubject
    jwt_key_type: KeyType
    jwt_issuer: str
    wit_key_type: KeyType
    wit_issuer: str
    features: frozenset[str]
    default_x509_svid_ttl: timedelta
    default_jwt_svid_ttl: timedelta
    agent_ttl: timedelta | None
    agent_spiffe_id_as_selector: bool
    node_pruning: NodePruning | None
    admin_ids: tuple[SpiffeId, ...]
    ratelimit_attestation: bool
    ratelimit_signing: bool
    disable_jwt_svids: bool
    require_pq_kem: bool
    proxies: tuple[Network, ...]
    node_staleness: float
    policy: PolicyFiles | None
    federation: Federation
    profiling: Profiling | None
    telemetry: Telemetry
    health_checks: HealthChecks
    plugins: tuple[PluginBlock, ...]
    warnings: tuple[str, ...]


def load(
    path: str = "",
    overrides: Overrides | None = None,
    *,
    expand_env: bool = False,
    also: Callable[[ServerConfig], None] | None = None,
) -> ServerConfig:
    """Read, check and complete a server's configuration.

    `also` checks more of it, as far as it can be read; its errors are told together with the others.

    Raises ConfigurationError, or ConfigurationErrors, with file and line where a fault stands in the file.
    """
    file, body = sections.read(ServerFile, path, DEFAULT_PATH, expand_env=expand_env)
    checks = Checks(body, "server")
    server = _merged(file.server or ServerSection(), overrides or Overrides())
    checks.require(file.server is not None, "server section must be configured")
    checks.require(file.server is None or server.trust_domain, "trust_domain must be configured")
    checks.require(file.server is None or server.data_dir, "data_dir must be configured")
    checks.note(*sections.unavailable(file, body, UNAVAILABLE))
    telemetry.check(file.telemetry, file.health_checks, checks)
    caches.check(server.experimental, checks)
    config = _checked(file, server, checks, path or DEFAULT_PATH)
    if also is not None and file.plugins is not None:
        checks.attempt(lambda: also(config), None, "plugins")
    checks.done()
    return replace(config, warnings=_warnings(file, config))


def _checked(file: ServerFile, server: ServerSection, checks: Checks, path: str) -> ServerConfig:
    ca_key_type = _key_type(checks, "ca_key_type", server.ca_key_type, KeyType.EC_P256)
    subject = server.ca_subject
    trust_domain = checks.attempt(
        lambda: TrustDomain.parse(server.trust_domain) if server.trust_domain else _NO_TRUST_DOMAIN,
        _NO_TRUST_DOMAIN,
        "trust_domain",
        f"trust_domain {quote(server.trust_domain)} cannot be used: ",
    )
    return ServerConfig(
        file=path,
        trust_domain=trust_domain,
        bind_address=(server.bind_address or "0.0.0.0").strip("[]"),  # noqa: S104 SPIRE's default
        bind_port=checks.port("bind_port", server.bind_port or DEFAULT_PORT),
        socket_path=sections.absolute(server.socket_path or DEFAULT_SOCKET_PATH),
        data_dir=server.data_dir,
        log_level=checks.log_level(server.log_level),
        log_format=checks.log_format(server.log_format),
        log_file=server.log_file or None,
        log_source_location=server.log_source_location,
        audit_log_enabled=server.audit_log_enabled,
        ca_ttl=_ttl(checks, server, "ca_ttl", DEFAULT_CA_TTL),
        ca_key_type=ca_key_type,
        ca_subject=subject if subject is not None and subject != CaSubject() else DEFAULT_CA_SUBJECT,
        jwt_key_type=_key_type(checks, "jwt_key_type", server.jwt_key_type, ca_key_type),
        jwt_issuer=server.jwt_issuer,
        wit_key_type=_key_type(checks, "wit_key_type", server.experimental.wit_key_type, ca_key_type, "experimental"),
        wit_issuer=server.experimental.wit_issuer,
        features=features.read(server.experimental.feature_flags, checks),
        default_x509_svid_ttl=_ttl(checks, server, "default_x509_svid_ttl", DEFAULT_X509_SVID_TTL),
        default_jwt_svid_ttl=_ttl(checks, server, "default_jwt_svid_ttl", DEFAULT_JWT_SVID_TTL),
        agent_ttl=_ttl(checks, server, "agent_ttl", timedelta()) or None,
        agent_spiffe_id_as_selector=server.experimental.agent_spiffe_id_as_selector,
        node_pruning=_node_pruning(checks, server),
        admin_ids=_admin_ids(checks, server.admin_ids),
        ratelimit_attestation=server.ratelimit.attestation is not False,
        ratelimit_signing=server.ratelimit.signing is not False,
        disable_jwt_svids=server.disable_jwt_svids,
        require_pq_kem=server.experimental.require_pq_kem,
        proxies=_networks(checks, server.proxy_protocol_trusted_cidrs),
        node_staleness=_staleness(checks, server.max_attested_node_info_staleness),
        policy=_policy(checks, server.experimental.auth_opa_policy_engine),
        federation=federation.read(server.federation, trust_domain, checks),
        profiling=profiling_settings.read(server, checks),
        telemetry=file.telemetry,
        health_checks=file.health_checks,
        plugins=read_section(file.plugins, checks),
        warnings=(),
    )


def _ttl(checks: Checks, server: ServerSection, key: str, default: timedelta) -> timedelta:
    text: str = getattr(server, key)
    return checks.period(key, text, default, f"{key} {quote(text)} is no duration such as 1h30m: ")


def _node_pruning(checks: Checks, server: ServerSection) -> NodePruning | None:
    key, text = "prune_attested_nodes_expired_for", server.prune_attested_nodes_expired_for
    if not text:
        return None
    words = f"{key} {quote(text)} is no duration such as 720h: "
    expired_for = checks.attempt(lambda: duration.parse(text), timedelta(), key, words)
    checks.require(expired_for >= timedelta(), f"{key} must not be less than 0: it is {quote(text)}", key)
    if not expired_for:
        return None
    batch_size = server.prune_attested_nodes_batch_size
    return NodePruning(expired_for, batch_size if batch_size > 0 else DEFAULT_PRUNE_BATCH_SIZE, server.prune_tofu_nodes)


def _key_type(checks: Checks, key: str, text: str, default: KeyType, *blocks: str) -> KeyType:
    try:
        return KeyType(text.lower()) if text else default
    except ValueError:
        checks.fault(f"{key} {quote(text)} is unknown: use ec-p256, ec-p384, rsa-2048 or rsa-4096", *blocks, key)
        return default


def _admin_ids(checks: Checks, texts: Sequence[str]) -> tuple[SpiffeId, ...]:
    def read(text: str) -> SpiffeId | None:
        return checks.attempt(
            lambda: SpiffeId.parse(text), None, "admin_ids", f"admin_ids: {quote(text)} is no SPIFFE ID: "
        )

    return tuple(spiffe_id for spiffe_id in map(read, texts) if spiffe_id is not None)


def _networks(checks: Checks, texts: Sequence[str]) -> tuple[Network, ...]:
    found: list[Network] = []
    for text in texts:
        try:
            if "/" not in text:
                raise ValueError("the number of bits is missing")  # a bare address is none for SPIRE
            found.append(ipaddress.ip_network(text, strict=False))
        except ValueError as error:
            key = "proxy_protocol_trusted_cidrs"
            checks.fault(f"{key}: {quote(text)} is no range of addresses such as 10.0.0.0/8: {error}", key)
    return tuple(found)


def _staleness(checks: Checks, text: str | None) -> float:
    """Seconds that a node read before counts. Without limit if unset: SQLite is this server's alone."""
    if text is None:
        return inf
    key = "max_attested_node_info_staleness"
    words = f"{key} {quote(text)} is no duration such as 10s: "
    return max(0.0, checks.attempt(lambda: duration.parse(text), timedelta(), key, words).total_seconds())


def _policy(checks: Checks, block: AuthPolicy | None) -> PolicyFiles | None:
    """The built-in table decides where there is no block."""
    if block is None:
        return None
    keys = ("experimental", "auth_opa_policy_engine")
    if block.local is None:
        checks.fault("auth_opa_policy_engine needs a block local that has a rego_path", *keys)
        return None
    if not block.local.rego_path:
        checks.fault("auth_opa_policy_engine: local needs a rego_path", *keys, "local")
        return None
    return PolicyFiles(block.local.rego_path, block.local.policy_data_path)


def _merged(section: ServerSection, overrides: Overrides) -> ServerSection:
    given = {name: value for name in overrides.__struct_fields__ if (value := getattr(overrides, name))}
    return msgspec.structs.replace(section, **given)


def _warnings(file: ServerFile, config: ServerConfig) -> tuple[str, ...]:
    lines: list[str] = []
    ttls: Sequence[tuple[str, timedelta | None]] = (
        ("default_x509_svid_ttl", config.default_x509_svid_ttl),
        ("default_jwt_svid_ttl", config.default_jwt_svid_ttl),
        ("agent_ttl", config.agent_ttl),
    )
    lines.extend(line for name, ttl in ttls if ttl and (line := ttl_warning(name, ttl, config.ca_ttl)))
    if file.server is not None and file.server.ca_subject == CaSubject():
        lines.append("ca_subject is empty, so the CA is named C=US, O=SPIFFE: fill the block or remove it")
    lines.extend(features.warnings(config.features))
    if file.server is not None:
        lines.extend(federation.warnings(file.server.federation, config.federation))
        lines.extend(profiling_settings.warnings(file.server))
    return tuple(lines)
