"""How an agent comes to trust its server the first time, from exactly one source of the trust bundle, and anew."""

from __future__ import annotations

from datetime import timedelta
from urllib.parse import parse_qs, urlsplit

from agent.bundle_address import parse_address
from agent.config.file import AgentSection
from operations import duration
from operations.checks import Checks
from operations.errors import InvalidArgument
from operations.quoting import quote

FORMATS = ("pem", "spiffe")
REBOOTSTRAP_MODES = ("never", "auto", "always")
DEFAULT_REBOOTSTRAP_DELAY = timedelta(minutes=10)
_SOURCES = ("insecure_bootstrap", "trust_bundle_url", "trust_bundle_path", "trust_bundle_spiffe_workload_api")


def check_bootstrap(agent: AgentSection, checks: Checks) -> None:
    """SPIRE's rules on insecure_bootstrap and the trust_bundle_ settings."""
    given = [key for key in _SOURCES if getattr(agent, key)]
    if not given:
        sources = "trust_bundle_path, trust_bundle_url or trust_bundle_spiffe_workload_api"
        checks.fault(f"nothing says which server to trust: set {sources}")
    elif len(given) > 1:
        *others, last = given
        checks.fault(f"{', '.join(others)} and {last} exclude each other: keep one", last)
    form = agent.trust_bundle_format
    if form and form not in FORMATS:
        checks.fault(f"trust_bundle_format {quote(form)} is unknown: use pem or spiffe", "trust_bundle_format")
    unix_socket, url = agent.trust_bundle_unix_socket, agent.trust_bundle_url
    if address := agent.trust_bundle_spiffe_workload_api:
        words = f"trust_bundle_spiffe_workload_api {quote(address)} cannot be used: "
        checks.attempt(lambda: parse_address(address), None, "trust_bundle_spiffe_workload_api", words)
    if unix_socket and not url:
        checks.fault("trust_bundle_unix_socket needs trust_bundle_url too: set both", "trust_bundle_unix_socket")
    if url:
        checks.attempt(lambda: _check_url(url, unix_socket=bool(unix_socket)), None, "trust_bundle_url")


def check_rebootstrap(agent: AgentSection, checks: Checks) -> timedelta:
    """SPIRE's rules on rebootstrap_mode, and the delay."""
    mode = agent.rebootstrap_mode
    checks.require(
        mode in ("", *REBOOTSTRAP_MODES),
        f"rebootstrap_mode {quote(mode)} is unknown: use never, auto or always",
        "rebootstrap_mode",
    )
    if mode in ("auto", "always") and agent.insecure_bootstrap:
        reason = f"rebootstrap_mode {mode} and insecure_bootstrap exclude each other: give the agent a trust bundle"
        checks.fault(reason, "rebootstrap_mode")
    delay = agent.rebootstrap_delay
    return checks.attempt(
        lambda: duration.parse(delay) if delay else DEFAULT_REBOOTSTRAP_DELAY,
        DEFAULT_REBOOTSTRAP_DELAY,
        "rebootstrap_delay",
        f"rebootstrap_delay {quote(delay)} is no duration such as 10m: ",
    )


def _check_url(url: str, *, unix_socket: bool) -> None:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise InvalidArgument(f"trust_bundle_url is no URL: {error}") from error
    if not unix_socket:
        if parts.scheme != "https":
            raise InvalidArgument("trust_bundle_url must begin with https://")
        if not parts.hostname:
            raise InvalidArgument("trust_bundle_url names no host")
        return
    if parts.scheme != "http":
        raise InvalidArgument("trust_bundle_url must begin with http:// beside trust_bundle_unix_socket")
    for key in parse_qs(parts.query, keep_blank_values=True):
        for prefix in ("spiffe-", "spire-"):
            if key.startswith(prefix):
                raise InvalidArgument(
                    f"trust_bundle_url has the query parameter {quote(key)}: names with {prefix} are reserved"
                )
