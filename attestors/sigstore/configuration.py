"""The `sigstore` block of the workload attestors docker and k8s."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class RegistryCredential(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One without the other counts for nothing, and the log says so."""

    username: str = ""
    password: str = ""

    def __repr__(self) -> str:
        return f"RegistryCredential(username={self.username!r}, password=…)"


class Configuration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose signatures count, and where to ask.

    `allowed_identities` has subjects by issuer; each is compared as it stands, or is a regular expression of RE2's
    syntax if it has any of `*+?^${}[]|()`. Without any, every identity will do. `skipped_images` are compared as they
    stand. `registry_credentials` go by the registry's host and port.
    """

    allowed_identities: Mapping[str, tuple[str, ...]] = {}
    skipped_images: tuple[str, ...] = ()
    rekor_url: str = ""
    ignore_sct: bool = False
    ignore_tlog: bool = False
    ignore_attestations: bool = False
    registry_credentials: Mapping[str, RegistryCredential] = {}
