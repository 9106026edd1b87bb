"""UpstreamAuthority "tpm": a root, or an intermediate, in a TPM signs the server's authority.

docs/runbooks/hardware-roots.md says how such a root is made and replaced.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from authorities.hardware import HardwareAuthority, Terms, check_files
from identity.spiffeid import TrustDomain
from keystores.tpm import configuration
from keystores.tpm.root import RootConfiguration
from plugins.rootkey import RootKey

if TYPE_CHECKING:
    from plugins.catalog import PluginContext

NAME = "tpm"


class Configuration(RootConfiguration, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Besides the TPM and its key: `cert_file_path` is the key's certificate (PEM) with those between it and its root
    after it, `bundle_file_path` the roots, unless it is self-signed.

    `ttl`, a Go duration, is the longest life of what it signs, `path_length` how many CAs may follow that, and
    `permitted_uris` the trust domains that it may vouch for.
    """

    cert_file_path: str
    bundle_file_path: str = ""
    ttl: str = "24h"
    path_length: int | None = None
    permitted_uris: tuple[str, ...] = ()

    def check_files(self) -> None:
        """Raises ConfigurationError for settings and certificates that cannot be used."""
        configuration.tcti(self.tcti)
        if self.key_handle is not None:
            configuration.handle(self.key_handle, "key_handle")
        check_files(self, time.time())


async def load(settings: Configuration, context: PluginContext) -> HardwareAuthority:
    """Raises ConfigurationError for certificates that cannot be used, and keystores.errors for a TPM or a key."""

    async def open_key(_: bytes) -> RootKey:
        from keystores.tpm.root import open_root  # with the device, when it is wanted

        return await open_root(settings, context)

    authority = HardwareAuthority(NAME, Terms.of(settings), open_key, TrustDomain(context.trust_domain), context.log)
    await authority.start()
    return authority
