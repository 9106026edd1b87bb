"""Which certificate the bundle endpoint shows, by its profile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from operations import logs
from operations.errors import ConfigurationError
from plugins.keymanager import KeyManager
from server.config import ServerConfig
from server.config.federation import Acme, BundleEndpoint, HttpsSpiffe, ServingFiles
from server.federation.endpoint import Endpoint
from server.own_svid import ServerSvid
from server.trust import TrustBundles
from transport.serving import ServingCertificate

if TYPE_CHECKING:
    from plugins.acme_account import AcmeAccount

ACME_FOLDER: Final = "bundle-acme"
"""In data_dir, as SPIRE has it."""

ACME_KEY_PREFIX: Final = "bundle-acme-"


async def acme_account(config: ServerConfig, keys: KeyManager) -> AcmeAccount | None:
    """The account whose certificate the endpoint shows, if that is its profile. Raises what the key manager raises."""
    settings = config.federation.bundle_endpoint
    if settings is None or not isinstance(settings.profile, Acme):
        return None
    from plugins.acme_account import AcmeAccount

    account = AcmeAccount(keys, ACME_KEY_PREFIX)
    await account.look()
    return account


def endpoint(
    config: ServerConfig,
    settings: BundleEndpoint,
    svid: ServerSvid,
    bundles: TrustBundles,
    account: AcmeAccount | None,
) -> Endpoint:
    """`account` as of acme_account. Raises ConfigurationError."""
    certificate = _certificate(config, settings.profile, svid, account)
    return Endpoint(settings, certificate, lambda: bundles.get(config.trust_domain), logs.get("bundle_endpoint"))


def _certificate(
    config: ServerConfig, profile: HttpsSpiffe | ServingFiles | Acme, svid: ServerSvid, account: AcmeAccount | None
) -> ServingCertificate:
    require_pq_kem = config.require_pq_kem
    if isinstance(profile, ServingFiles):
        from transport.serving_files import FilesCertificate

        return FilesCertificate(
            profile.cert_file_path,
            profile.key_file_path,
            profile.file_sync_interval,
            logs.get("bundle_endpoint"),
            require_pq_kem=require_pq_kem,
        )
    if isinstance(profile, Acme) and account is not None:
        from transport.acme.certificate import AcmeCertificate
        from transport.acme.settings import AcmeSettings

        if require_pq_kem:
            raise ConfigurationError(
                "experimental.require_pq_kem refuses the ACME CA, which proves the name by an ordinary TLS handshake: "
                "use serving_cert_file, or remove require_pq_kem"
            )
        settings = AcmeSettings(profile.directory_url, profile.domain_name, profile.email, profile.tos_accepted)
        folder = Path(config.data_dir) / ACME_FOLDER
        return AcmeCertificate(settings, account, folder, logs.get("bundle_acme"))

    from server.federation.own_certificate import OwnCertificate

    return OwnCertificate(svid, require_pq_kem=require_pq_kem)
