"""Which certificate the bundle endpoint shows, by its profile."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from operations import logs
from operations.errors import ConfigurationError
from plugins.keymanager import KeyManager
from server.config import ServerConfig
from server.config.federation import Acme, BundleEndpoint, HttpsSpiffe, ServingFiles
from server.federation.endpoint import Endpoint
from server.own_svid import ServerSvid
from server.trust import TrustBundles
from transport.serving import ServingCertificate

ACME_FOLDER: Final = "bundle-acme"
"""In data_dir, as SPIRE has it."""

ACME_KEY_PREFIX: Final = "bundle-acme-"


def endpoint(
    config: ServerConfig, settings: BundleEndpoint, svid: ServerSvid, bundles: TrustBundles, keys: KeyManager
) -> Endpoint:
    """Raises ConfigurationError."""
    certificate = _certificate(config, settings.profile, svid, keys)
    return Endpoint(settings, certificate, lambda: bundles.get(config.trust_domain), logs.get("bundle_endpoint"))


def _certificate(
    config: ServerConfig, profile: HttpsSpiffe | ServingFiles | Acme, svid: ServerSvid, keys: KeyManager
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
    if isinstance(profile, Acme):
        from plugins.acme_account import AcmeAccount
        from transport.acme.certificate import AcmeCertificate
        from transport.acme.settings import AcmeSettings

        if require_pq_kem:
            raise ConfigurationError(
                "experimental.require_pq_kem refuses the ACME CA, which proves the name by an ordinary TLS handshake: "
                "use serving_cert_file, or remove require_pq_kem"
            )
        settings = AcmeSettings(profile.directory_url, profile.domain_name, profile.email, profile.tos_accepted)
        folder = Path(config.data_dir) / ACME_FOLDER
        return AcmeCertificate(settings, AcmeAccount(keys, ACME_KEY_PREFIX), folder, logs.get("bundle_acme"))

    from server.federation.own_certificate import OwnCertificate

    return OwnCertificate(svid, require_pq_kem=require_pq_kem)
