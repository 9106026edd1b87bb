"""How an agent comes to trust its server the first time: exactly one source of the trust bundle."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

from agent.config.file import AgentSection
from operations.checks import Checks
from operations.errors import InvalidArgument
from operations.quoting import quote

FORMATS = ("pem", "spiffe")
_SOURCES = ("insecure_bootstrap", "trust_bundle_url", "trust_bundle_path")


def check_bootstrap(agent: AgentSection, checks: Checks) -> None:
    """SPIRE's rules on insecure_bootstrap and the trust_bundle_ settings."""
    if agent.trust_bundle_spiffe_workload_api:
        return  # refused elsewhere, as not available
    given = [key for key in _SOURCES if getattr(agent, key)]
    if not given:
        checks.fault("nothing says which server to trust: set trust_bundle_path or trust_bundle_url")
    elif len(given) > 1:
        *others, last = given
        checks.fault(f"{', '.join(others)} and {last} exclude each other: keep one", last)
    form = agent.trust_bundle_format
    if form and form not in FORMATS:
        checks.fault(f"trust_bundle_format {quote(form)} is unknown: use pem or spiffe", "trust_bundle_format")
    unix_socket, url = agent.trust_bundle_unix_socket, agent.trust_bundle_url
    if unix_socket and not url:
        checks.fault("trust_bundle_unix_socket needs trust_bundle_url too: set both", "trust_bundle_unix_socket")
    if url:
        checks.attempt(lambda: _check_url(url, unix_socket=bool(unix_socket)), None, "trust_bundle_url")


def _check_url(url: str, *, unix_socket: bool) -> None:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InvalidArgument(f"trust_bundle_url is no URL: {error}") from error
    if not unix_socket:
        if parts.scheme != "https":
            raise InvalidArgument("trust_bundle_url must begin with https://")
        return
    if parts.scheme != "http":
        raise InvalidArgument("trust_bundle_url must begin with http:// beside trust_bundle_unix_socket")
    for key in parse_qs(parts.query, keep_blank_values=True):
        for prefix in ("spiffe-", "spire-"):
            if key.startswith(prefix):
                raise InvalidArgument(
                    f"trust_bundle_url has the query parameter {quote(key)}: names with {prefix} are reserved"
                )
