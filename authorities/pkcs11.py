"""UpstreamAuthority "pkcs11": a root, or an intermediate, in an HSM signs the server's authority.

docs/runbooks/hardware-roots.md says how such a root is made and replaced.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from authorities.hardware import HardwareAuthority, Terms, check_files
from identity.spiffeid import TrustDomain
from keystores.pkcs11.configuration import TokenConfiguration, token_spec
from plugins.rootkey import RootKey

if TYPE_CHECKING:
    from plugins.catalog import PluginContext

NAME = "pkcs11"


class Configuration(TokenConfiguration, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Besides the token: `key_label` names the private key, `cert_file_path` its certificate (PEM) with those between
    it and its root after it, `bundle_file_path` the roots, unless it is self-signed.

    `ttl`, a Go duration, is the longest life of what it signs, `path_length` how many CAs may follow that, and
    `permitted_uris` the trust domains that it may vouch for.
    """

    key_label: str
    cert_file_path: str
    bundle_file_path: str = ""
    ttl: str = "24h"
    path_length: int | None = None
    permitted_uris: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.key_label:
            raise ValueError("'key_label' must not be empty")

    def check_files(self) -> None:
        """Raises ConfigurationError for settings and certificates that cannot be used."""
        token_spec(self)
        check_files(self, time.time())


async def load(configuration: Configuration, context: PluginContext) -> HardwareAuthority:
    """Raises ConfigurationError for certificates that cannot be used, and keystores.errors for a token or a key."""

    async def open_key(certified_key: bytes) -> RootKey:
        from keystores.pkcs11.root import open_root  # with the device, when it is wanted

        return await open_root(configuration, configuration.key_label, context, certified_key=certified_key)

    authority = HardwareAuthority(
        NAME, Terms.of(configuration), open_key, TrustDomain(context.trust_domain), context.log
    )
    await authority.start()
    return authority
