"""The `sigstore` block of the workload attestors docker and k8s."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from operations.errors import InvalidArgument
from operations.quoting import quote

_OF_PATTERNS = frozenset("*+?^${}[]|()")


class RegistryCredential(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One without the other counts for nothing, and the log says so."""

    username: str = ""
    password: str = ""

    def __repr__(self) -> str:
        return f"RegistryCredential(username={self.username!r}, password=…)"


class Configuration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose signatures count, and where to ask.

    `allowed_identities` has subjects by issuer; each is compared as it stands, or is a regular expression of RE2's
    syntax, found anywhere in the text, if it has any of `*+?^${}[]|()`. Without any, every identity will do.
    `skipped_images` are compared as they stand. `registry_credentials` go by the registry's host and port.
    """

    allowed_identities: Mapping[str, tuple[str, ...]] = {}
    skipped_images: tuple[str, ...] = ()
    rekor_url: str = ""
    ignore_sct: bool = False
    ignore_tlog: bool = False
    ignore_attestations: bool = False
    registry_credentials: Mapping[str, RegistryCredential] = {}

    def __post_init__(self) -> None:
        """Raises InvalidArgument."""
        for issuer, subjects in self.allowed_identities.items():
            _check_identity(issuer, subjects)
        if self.rekor_url:
            from transport.web.urls import Url  # with the setting only

            try:
                Url.parse(self.rekor_url)
            except InvalidArgument as error:
                raise InvalidArgument(f"rekor_url: {error}") from error


def is_pattern(text: str) -> bool:
    """Whether an issuer or subject is a regular expression, by the signs that SPIRE goes by."""
    return not _OF_PATTERNS.isdisjoint(text)


def _check_identity(issuer: str, subjects: tuple[str, ...]) -> None:
    if not subjects:
        # SPIRE takes this for no rule at all, which would let everybody in.
        advice = "name those that may sign, or remove it"
        raise InvalidArgument(f"allowed_identities: {quote(issuer)} has no subjects: {advice}")
    for text in (issuer, *subjects):
        if is_pattern(text):
            from attestors.agent_path.regexes import compiled  # with patterns only

            try:
                compiled(text)
            except InvalidArgument as error:
                raise InvalidArgument(f"allowed_identities: {error}") from error
