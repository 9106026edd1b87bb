"""The settings of `oidc_attestor`: whose tokens count, for whom they must be meant, and where a process has its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import urlsplit

import msgspec

from operations.errors import InvalidArgument
from operations.quoting import quote

ALGORITHMS: Final = ("RS256", "ES256", "EdDSA")
FACTS: Final = ("pid", "uid", "gid", "pod_uid", "container_id")
"""What is known of a process, and a token may be bound to."""
POD_UID: Final = "kubernetes.io.pod.uid"
"""Where the tokens of Kubernetes' service accounts name the pod that they were made for."""

_MOST = 64


class Issuer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A token counts if it is for one of `audiences`.

    `jwks_url` saves the discovery; `ca_path` (PEM) are the only CAs that may have certified the issuer's servers, in
    place of the system's. `claims` become selectors: names, or paths with dots (`kubernetes.io.namespace`). `binding`
    has for each of FACTS the claim that must say the same of the calling process.
    """

    jwks_url: str = ""
    audiences: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()
    algorithms: tuple[str, ...] = ALGORITHMS
    ca_path: str = ""
    binding: Mapping[str, str] = msgspec.field(default_factory=dict[str, str])

    def check(self, issuer: str) -> None:
        """Raises InvalidArgument."""
        place = f"issuers {quote(issuer)}"
        _require_https(issuer, place)
        if self.jwks_url:
            _require_https(self.jwks_url, f"{place}: jwks_url")
        if not self.audiences or not all(self.audiences):
            raise InvalidArgument(f"{place}: audiences is required: a token for others proves nothing here")
        unknown = next((each for each in self.algorithms if each not in ALGORITHMS), None)
        if unknown is not None or not self.algorithms:
            raise InvalidArgument(f"{place}: algorithms: {quote(unknown or '')} is none of {', '.join(ALGORITHMS)}")
        strange = next((each for each in self.binding if each not in FACTS), None)
        if strange is not None:
            raise InvalidArgument(f"{place}: binding: {quote(strange)} is none of {', '.join(FACTS)}")
        for key, values in (("audiences", self.audiences), ("claims", self.claims)):
            if len(values) > _MOST:
                raise InvalidArgument(f"{place}: {key} has more than {_MOST} values")
        if not all((*self.claims, *self.binding.values())):
            raise InvalidArgument(f"{place}: a claim without a name")


class Configuration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`token_path` is as the process sees it, `token_env` a variable of its environment; the file comes first."""

    issuers: Mapping[str, Issuer]
    token_path: str = ""
    token_env: str = ""

    def __post_init__(self) -> None:
        """Raises InvalidArgument."""
        if not self.issuers:
            raise InvalidArgument('issuers is required: a block with the URL of each, issuers "https://…" { … }')
        if len(self.issuers) > _MOST:
            raise InvalidArgument(f"issuers: more than {_MOST} of them")
        for name, issuer in self.issuers.items():
            issuer.check(name)
        if not self.token_path and not self.token_env:
            raise InvalidArgument("one of token_path and token_env is required: where processes have their tokens")
        if self.token_path and not PurePosixPath(self.token_path).is_absolute():
            raise InvalidArgument(f"token_path: {quote(self.token_path)} must be an absolute path")
        if "=" in self.token_env or "\0" in self.token_env + self.token_path:
            raise InvalidArgument(f"token_env: {quote(self.token_env)} is no name of a variable")

    def check_files(self) -> None:
        """Raises ConfigurationError for CA files that cannot be used."""
        from attestors.oidc.fetching import tls_context  # which brings in ssl

        for name, issuer in self.issuers.items():
            tls_context(name, issuer.ca_path)


def _require_https(url: str, place: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme == "https" and bool(parts.hostname) and not parts.query and not parts.fragment
        usable = usable and parts.username is None and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise InvalidArgument(f"{place}: must be a URL https://HOST[:PORT][/PATH]")
