"""What an agent runs with: its file, over-ridden by its command line, checked, with the defaults put in."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import msgspec

from agent.config.bootstrap import check_bootstrap, check_rebootstrap
from agent.config.delegation import BrokerSettings, authorized_delegates, broker_settings
from agent.config.file import AgentFile, AgentSection, RateLimit, Sds
from agent.config.sockets import apart_from_workloads
from identity.spiffeid import TrustDomain
from operations import duration, features, profiling_settings, sections, telemetry
from operations.checks import Checks
from operations.errors import InvalidArgument
from operations.profiling_settings import Profiling
from operations.quoting import quote
from operations.sections import HealthChecks, Telemetry
from plugins.blocks import PluginBlock, read_section
from plugins.keymanager import KeyType

DEFAULT_PATH = "conf/agent/agent.conf"
DEFAULT_SOCKET_PATH = "/tmp/spire-agent/public/api.sock"  # noqa: S108 SPIRE's default
LEAST_AVAILABILITY_TARGET = timedelta(hours=24)
_LEAST_HIT_TIMEOUT = timedelta(seconds=5)
_HIT_TIMEOUT_BOUND = timedelta(seconds=30)
_WORKLOAD_KEY_TYPES = (KeyType.RSA_2048, KeyType.EC_P256, KeyType.EC_P384)
_NO_TRUST_DOMAIN = TrustDomain("none")

UNAVAILABLE: sections.Unavailable = {
    **sections.UNAVAILABLE,
    "agent.experimental.named_pipe_name": "use socket_path",
    "agent.experimental.admin_named_pipe_name": "remove the key",
}
"""Known settings without effect."""


class Overrides(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says; a value that is not given leaves the file's."""

    allow_unauthenticated_verifiers: bool = False
    data_dir: str = ""
    disable_sds_api: bool = False
    disable_workload_api: bool = False
    insecure_bootstrap: bool = False
    join_token: str = ""
    join_token_file: str = ""
    log_file: str = ""
    log_format: str = ""
    log_level: str = ""
    log_source_location: bool = False
    rebootstrap_delay: str = ""
    rebootstrap_mode: str = ""
    server_address: str = ""
    server_port: int = 0
    socket_path: str = ""
    trust_bundle_format: str = ""
    trust_bundle_path: str = ""
    trust_bundle_url: str = ""
    trust_domain: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """An agent's settings, complete and valid. `warnings` are lines for the log.

    `sync_interval`, `availability_target` and `jwt_svid_cache_hit_timeout` are None, and cache sizes 0, where the
    agent's own defaults count.
    """

    file: str
    trust_domain: TrustDomain
    data_dir: str
    server_address: str
    server_port: int
    socket_path: str
    disable_workload_api: bool
    disable_sds_api: bool
    admin_socket_path: str | None
    log_level: str
    log_format: str
    log_file: str | None
    log_source_location: bool
    log_selectors: tuple[str, ...]
    insecure_bootstrap: bool
    trust_bundle_path: str | None
    trust_bundle_url: str | None
    trust_bundle_unix_socket: str | None
    trust_bundle_format: str
    trust_bundle_spiffe_workload_api: str | None
    rebootstrap_mode: str
    rebootstrap_delay: timedelta
    join_token: str | None = field(repr=False)
    workload_key_type: KeyType
    allow_unauthenticated_verifiers: bool
    allowed_foreign_jwt_claims: tuple[str, ...]
    availability_target: timedelta | None
    sync_interval: timedelta | None
    use_sync_authorized_entries: bool
    require_pq_kem: bool
    x509_svid_cache_max_size: int
    jwt_svid_cache_max_size: int
    authorized_delegates: tuple[str, ...]
    broker: BrokerSettings | None
    sds: Sds
    jwt_svid_cache_hit_timeout: timedelta | None
    ratelimit: RateLimit
    profiling: Profiling | None
    telemetry: Telemetry
    health_checks: HealthChecks
    plugins: tuple[PluginBlock, ...]
    warnings: tuple[str, ...]

    @property
    def serves_workloads(self) -> bool:
        """Whether there is a socket for them at all."""
        return not (self.disable_workload_api and self.disable_sds_api)


def load(path: str = "", overrides: Overrides | None = None, *, expand_env: bool = False) -> AgentConfig:
    """Read, check and complete an agent's configuration, with the join token out of its file.

    Raises ConfigurationError, or ConfigurationErrors, with file and line where a fault stands in the file.
    """
    file, body = sections.read(AgentFile, path, DEFAULT_PATH, expand_env=expand_env)
    checks = Checks(body, "agent")
    agent = _merged(file.agent or AgentSection(), overrides or Overrides())
    checks.require(file.agent is not None, "agent section must be configured")
    if file.agent is not None:
        _check_section(agent, checks)
    features.read(agent.experimental.feature_flags, checks)
    checks.note(*sections.unavailable(file, body, UNAVAILABLE))
    telemetry.check(file.telemetry, file.health_checks, checks)
    config = _checked(file, agent, checks, path or DEFAULT_PATH)
    checks.done()
    return replace(config, warnings=_warnings(agent))


def _merged(section: AgentSection, overrides: Overrides) -> AgentSection:
    given = {name: value for name in overrides.__struct_fields__ if (value := getattr(overrides, name))}
    return msgspec.structs.replace(section, **given)


def _check_section(agent: AgentSection, checks: Checks) -> None:
    both_tokens = agent.join_token and agent.join_token_file
    checks.require(not both_tokens, "join_token and join_token_file exclude each other: keep one", "join_token_file")
    checks.require(agent.server_address, "server_address must be configured", "server_address")
    checks.require(agent.server_port, "server_port must be configured", "server_port")
    checks.require(agent.trust_domain, "trust_domain must be configured", "trust_domain")
    check_bootstrap(agent, checks)
    for key in ("x509_svid_cache_max_size", "jwt_svid_cache_max_size"):
        size: int = getattr(agent, key)
        checks.require(size >= 0, f"{key} must not be negative: it is {size}", key)
    limits = agent.experimental.ratelimit
    for key in limits.__struct_fields__:
        path = f"experimental.ratelimit.{key}"
        checks.require(getattr(limits, key) >= 0, f"{path} must not be negative", *path.split("."))


def _checked(file: AgentFile, agent: AgentSection, checks: Checks, path: str) -> AgentConfig:
    experimental = agent.experimental
    socket_path = agent.socket_path or DEFAULT_SOCKET_PATH
    # Without any API for workloads their socket is nobody's.
    workload_socket = "" if agent.disable_workload_api and agent.disable_sds_api else socket_path
    trust_domain = checks.attempt(
        lambda: TrustDomain.parse(agent.trust_domain) if agent.trust_domain else _NO_TRUST_DOMAIN,
        _NO_TRUST_DOMAIN,
        "trust_domain",
        f"trust_domain {quote(agent.trust_domain)} cannot be used: ",
    )
    return AgentConfig(
        file=path,
        trust_domain=trust_domain,
        data_dir=agent.data_dir or ".",
        server_address=agent.server_address,
        server_port=checks.port("server_port", agent.server_port) if agent.server_port else 0,
        socket_path=sections.absolute(socket_path),
        disable_workload_api=agent.disable_workload_api,
        admin_socket_path=apart_from_workloads(
            agent.admin_socket_path, "admin socket", workload_socket, checks, "admin_socket_path"
        ),
        log_level=checks.log_level(agent.log_level),
        log_format=checks.log_format(agent.log_format),
        log_file=agent.log_file or None,
        log_source_location=agent.log_source_location,
        log_selectors=agent.log_selectors,
        insecure_bootstrap=agent.insecure_bootstrap,
        trust_bundle_path=agent.trust_bundle_path or None,
        trust_bundle_url=agent.trust_bundle_url or None,
        trust_bundle_unix_socket=agent.trust_bundle_unix_socket or None,
        trust_bundle_format=agent.trust_bundle_format or "pem",
        trust_bundle_spiffe_workload_api=agent.trust_bundle_spiffe_workload_api or None,
        rebootstrap_mode=agent.rebootstrap_mode or "never",
        rebootstrap_delay=check_rebootstrap(agent, checks),
        join_token=checks.attempt(lambda: _join_token(agent), None, "join_token_file"),
        workload_key_type=checks.attempt(
            lambda: _workload_key_type(agent.workload_x509_svid_key_type),
            KeyType.EC_P256,
            "workload_x509_svid_key_type",
        ),
        allow_unauthenticated_verifiers=agent.allow_unauthenticated_verifiers,
        allowed_foreign_jwt_claims=agent.allowed_foreign_jwt_claims,
        availability_target=checks.attempt(
            lambda: _availability_target(agent.availability_target), None, "availability_target"
        ),
        sync_interval=checks.period(
            "experimental.sync_interval",
            experimental.sync_interval,
            timedelta(),
            f"experimental.sync_interval {quote(experimental.sync_interval)} is no duration such as 10s: ",
        )
        or None,
        use_sync_authorized_entries=experimental.use_sync_authorized_entries is not False,
        require_pq_kem=experimental.require_pq_kem,
        x509_svid_cache_max_size=agent.x509_svid_cache_max_size,
        jwt_svid_cache_max_size=agent.jwt_svid_cache_max_size,
        authorized_delegates=authorized_delegates(
            agent, None if trust_domain is _NO_TRUST_DOMAIN else trust_domain, checks
        ),
        broker=broker_settings(agent, workload_socket, checks),
        sds=_sds(agent.sds),
        disable_sds_api=agent.disable_sds_api,
        jwt_svid_cache_hit_timeout=checks.attempt(
            lambda: _hit_timeout(experimental.jwt_svid_cache_hit_timeout),
            None,
            "experimental.jwt_svid_cache_hit_timeout",
        ),
        ratelimit=experimental.ratelimit,
        profiling=profiling_settings.read(agent, checks),
        telemetry=file.telemetry,
        health_checks=file.health_checks,
        plugins=read_section(file.plugins, checks),
        warnings=(),
    )


def _sds(given: Sds) -> Sds:
    """An empty name is one that was not given."""
    named = {name: value for name in given.__struct_fields__ if (value := getattr(given, name))}
    return msgspec.structs.replace(Sds(), **named)


def _join_token(agent: AgentSection) -> str | None:
    """The token itself, or the text of its file. Its file may have any mode, as in SPIRE: a token serves once."""
    if not agent.join_token_file:
        return agent.join_token or None
    try:
        token = Path(agent.join_token_file).read_text(encoding="utf-8").strip()
    except OSError as error:
        reason = f"join_token_file {quote(agent.join_token_file)} cannot be read: {error.strerror}"
        raise InvalidArgument(reason) from error
    if not token:
        raise InvalidArgument(f"join_token_file {quote(agent.join_token_file)} is empty: put the token into it")
    return token


def _workload_key_type(text: str) -> KeyType:
    for key_type in _WORKLOAD_KEY_TYPES:
        if key_type.value == (text.lower() or KeyType.EC_P256.value):
            return key_type
    raise InvalidArgument(f"workload_x509_svid_key_type {quote(text)} is unknown: use ec-p256, ec-p384 or rsa-2048")


def _availability_target(text: str) -> timedelta | None:
    if not text:
        return None
    try:
        target = duration.parse(text)
    except ValueError as error:
        raise InvalidArgument(f"availability_target {quote(text)} is no duration such as 48h: {error}") from error
    if target < LEAST_AVAILABILITY_TARGET:
        raise InvalidArgument(
            f"availability_target {quote(text)} is too short: use {duration.text(LEAST_AVAILABILITY_TARGET)} or more"
        )
    return target


def _hit_timeout(text: str) -> timedelta | None:
    if not text:
        return None
    try:
        timeout = duration.parse(text)
    except ValueError as error:
        raise InvalidArgument(f"could not parse jwt_svid_cache_hit_timeout: {error}") from error
    given = f"jwt_svid_cache_hit_timeout ({duration.text(timeout)})"
    if timeout < _LEAST_HIT_TIMEOUT:
        raise InvalidArgument(f"{given} must be at least {duration.text(_LEAST_HIT_TIMEOUT)}")
    if timeout >= _HIT_TIMEOUT_BOUND:
        raise InvalidArgument(f"{given} must be less than {duration.text(_HIT_TIMEOUT_BOUND)}")
    return timeout


def _warnings(agent: AgentSection) -> tuple[str, ...]:
    lines = list(features.warnings(agent.experimental.feature_flags))
    if agent.experimental.use_sync_authorized_entries is not None:
        lines.append("experimental.use_sync_authorized_entries is deprecated and will go: remove the key")
    bundle = _sds(agent.sds).default_bundle_name
    if bundle == _sds(agent.sds).default_all_bundles_name:
        names = "sds.default_bundle_name and sds.default_all_bundles_name"
        lines.append(f"{names} are both {quote(bundle)}, which stands for the first alone: give them different values")
    if agent.experimental.jwt_svid_cache_hit_timeout:
        lines.append("The use of 'jwt_svid_cache_hit_timeout' is experimental")
    lines.extend(profiling_settings.warnings(agent))
    if agent.authorized_delegates and not agent.admin_socket_path:
        lines.append("authorized_delegates has no effect without admin_socket_path: delegates call there")
    return tuple(lines)
