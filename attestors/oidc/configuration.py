"""The settings of the OIDC workload attestor: which issuers are believed, about what, and where tokens are."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Literal

import msgspec

from attestors.oidc import claims
from attestors.sigstore.urls import Url
from operations.errors import ConfigurationError, InvalidArgument
from operations.quoting import quote

Algorithm = Literal["RS256", "ES256", "EdDSA"]


class Issuer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An issuer that is believed.

    Keys are at `jwks_url`, or where the issuer's own configuration says (OpenID Connect Discovery 1.0, 4). `ca_path`
    has the only CAs (PEM) that its TLS certificate may be of; without it they are the host's. A token is for one of
    `audiences`. `claims` become selectors; a path such as `kubernetes.io.pod.name` leads into objects.

    A token that names a pod is its processes' only; one with `uid_claim`, that user's. `require_binding` refuses one
    that says neither.
    """

    jwks_url: str = ""
    ca_path: str = ""
    audiences: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()
    algorithms: tuple[Algorithm, ...] = ("RS256", "ES256", "EdDSA")
    uid_claim: str = ""
    require_binding: bool = False

    def __post_init__(self) -> None:
        """Raises InvalidArgument."""
        if not all(self.audiences) or not self.audiences:
            raise InvalidArgument("audiences must be configured: a token for anybody would be taken otherwise")
        if not self.algorithms:
            raise InvalidArgument("algorithms must not be empty")
        if self.jwks_url:
            require_https("jwks_url", self.jwks_url)
        for path in (*self.claims, *((self.uid_claim,) if self.uid_claim else ())):
            claims.require_path(path)

    def tls(self) -> ssl.SSLContext:
        """Blocks. Raises ConfigurationError for CAs that cannot be used."""
        try:
            return ssl.create_default_context(cafile=self.ca_path)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"ca_path {quote(self.ca_path)} cannot be used: {_reason(error)}") from error


class Configuration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Issuers by their identifier, the claim `iss`. `token_path` is looked for first, as the workload sees it."""

    issuers: Mapping[str, Issuer] = msgspec.field(default_factory=dict[str, Issuer])
    token_path: str = ""
    token_env: str = ""

    def __post_init__(self) -> None:
        """Raises InvalidArgument."""
        if not self.issuers:
            raise InvalidArgument('no issuer is configured: add issuers "https://…" { audiences = ["…"] }')
        for name in self.issuers:
            require_https("issuers", name)
        if not (self.token_path or self.token_env):
            raise InvalidArgument("token_path or token_env must be configured: where workloads have their tokens")
        if self.token_path and not self.token_path.startswith("/"):
            raise InvalidArgument(f"token_path {quote(self.token_path)} must be absolute")
        if "=" in self.token_env or "\0" in self.token_env + self.token_path:
            raise InvalidArgument(f"token_env {quote(self.token_env)} is no variable's name")

    def check_files(self) -> None:
        """Raises ConfigurationError."""
        for issuer in self.issuers.values():
            if issuer.ca_path:
                issuer.tls()


def require_https(setting: str, text: str) -> Url:
    """Raises InvalidArgument for what is no URL of HTTPS."""
    try:
        url = Url.parse(text)
    except InvalidArgument as error:
        raise InvalidArgument(f"{setting}: {error}") from error
    if url.scheme != "https":
        raise InvalidArgument(f"{setting} {quote(text)} must begin with https://, since keys are believed by TLS")
    return url


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return "it has no certificates in PEM"
    return error.strerror or str(error)
