"""How an agent comes to trust its server the first time: exactly one source of the trust bundle."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

from agent.config.file import AgentSection
from operations.checks import Checks
from operations.errors import InvalidArgument

FORMATS = ("pem", "spiffe")


def check_bootstrap(agent: AgentSection, checks: Checks) -> None:
    """SPIRE's rules on insecure_bootstrap and the trust_bundle_ settings, in its words."""
    path, url, insecure = agent.trust_bundle_path, agent.trust_bundle_url, agent.insecure_bootstrap
    if agent.trust_bundle_spiffe_workload_api:
        return  # refused elsewhere, as not available
    if insecure and url and path:
        names = "insecure_bootstrap, trust_bundle_url, or trust_bundle_path"
        checks.fault(f"only one of {names} can be specified, not the three options", "insecure_bootstrap")
    elif insecure and url:
        checks.fault(
            "only one of insecure_bootstrap or trust_bundle_url can be specified, not both", "trust_bundle_url"
        )
    elif insecure and path:
        reason = "only one of insecure_bootstrap or trust_bundle_path can be specified, not both"
        checks.fault(reason, "trust_bundle_path")
    elif url and path:
        checks.fault("only one of trust_bundle_url or trust_bundle_path can be specified, not both", "trust_bundle_url")
    elif not (insecure or url or path):
        checks.fault("trust_bundle_path or trust_bundle_url must be configured unless insecure_bootstrap is set")
    if agent.trust_bundle_format and agent.trust_bundle_format not in FORMATS:
        checks.fault('invalid value for trust_bundle_format, expected "pem" or "spiffe"', "trust_bundle_format")
    if agent.trust_bundle_unix_socket and not url:
        reason = "if trust_bundle_unix_socket is specified, so must be trust_bundle_url"
        checks.fault(reason, "trust_bundle_unix_socket")
    if url:
        checks.attempt(
            lambda: _check_url(url, unix_socket=bool(agent.trust_bundle_unix_socket)), None, "trust_bundle_url"
        )


def _check_url(url: str, *, unix_socket: bool) -> None:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InvalidArgument(f"unable to parse trust bundle URL: {error}") from error
    if not unix_socket:
        if parts.scheme != "https":
            raise InvalidArgument("trust bundle URL must start with https://")
        return
    if parts.scheme != "http":
        raise InvalidArgument("trust bundle URL must start with http:// when used with trust bundle unix socket")
    for key in parse_qs(parts.query, keep_blank_values=True):
        for prefix in ("spiffe-", "spire-"):
            if key.startswith(prefix):
                raise InvalidArgument(f"trust_bundle_url query params can not start with {prefix}")
