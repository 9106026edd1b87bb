"""Which certificate the bundle endpoint shows, by its profile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from identity.bundles import Bundle
from keystores.inspection import Use
from operations import logs
from operations.logs import Logger
from plugins.acme_account import AcmeAccount
from plugins.keymanager import KeyManager
from server.config import ServerConfig
from server.config.federation import Acme, BundleEndpoint, ServingFiles
from server.federation.endpoint import Endpoint
from server.federation.own_certificate import OwnCertificate
from server.own_svid import ServerSvid
from server.trust import TrustBundles
from transport.serving import ServingCertificate

ACME_FOLDER: Final = "bundle-acme"
"""In data_dir, as SPIRE has it."""

ACME_KEY_PREFIX: Final = "bundle-acme-"


async def endpoint(
    config: ServerConfig, settings: BundleEndpoint, svid: ServerSvid, bundles: TrustBundles, keys: KeyManager
) -> Endpoint:
    """Raises what the key manager raises."""
    log = logs.get("bundle_endpoint")

    async def bundle() -> Bundle | None:
        return await bundles.get(config.trust_domain)

    if isinstance(settings.profile, ServingFiles):
        return Endpoint(settings, _of_files(settings.profile, log, require_pq_kem=config.require_pq_kem), bundle, log)
    if isinstance(settings.profile, Acme):
        account = AcmeAccount(keys, ACME_KEY_PREFIX)
        await account.look()  # an earlier run's key is in use though nothing has to be ordered
        return Endpoint(settings, _of_acme(config, settings.profile, account), bundle, log, lambda: _uses(account))
    return Endpoint(settings, OwnCertificate(svid, require_pq_kem=config.require_pq_kem), bundle, log)


def _of_files(files: ServingFiles, log: Logger, *, require_pq_kem: bool) -> ServingCertificate:
    from transport.serving_files import FilesCertificate

    return FilesCertificate(
        files.cert_file_path, files.key_file_path, files.file_sync_interval, log, require_pq_kem=require_pq_kem
    )


def _of_acme(config: ServerConfig, acme: Acme, account: AcmeAccount) -> ServingCertificate:
    from transport.acme.certificate import AcmeCertificate
    from transport.acme.settings import AcmeSettings

    settings = AcmeSettings(acme.directory_url, acme.domain_name, acme.email, acme.tos_accepted)
    folder = Path(config.data_dir) / ACME_FOLDER
    log = logs.get("bundle_acme")
    return AcmeCertificate(settings, account, folder, log, require_pq_kem=config.require_pq_kem)


def _uses(account: AcmeAccount) -> Sequence[Use]:
    if account.key is None:
        return ()
    return (Use("ACME account", "active", "bundle endpoint", account.key_id, account.key.public_key),)
