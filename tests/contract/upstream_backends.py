"""Upstream authorities of every kind, each ready to sign."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from authorities import pkcs11, tpm, vault
from authorities.disk import Configuration as DiskConfiguration
from authorities.disk import DiskAuthority
from authorities.spire import Configuration as SpireConfiguration
from authorities.spire import SpireAuthority
from identity import bundles
from identity.spiffeid import TrustDomain
from keystores.vault.configuration import TokenAuth
from operations import logs
from plugins.catalog import PluginContext
from plugins.upstreamauthority import UpstreamAuthority
from tests.simulators import ceremony, openbao, softhsm, swtpm
from tests.simulators.nested import nest
from tests.simulators.pki import Authority, Certificate, ec_key

TD = TrustDomain("example.org")
Backend = Callable[[Path], AbstractAsyncContextManager[UpstreamAuthority]]


def root_of_today() -> Authority:
    """A self-signed CA that is in force now."""
    key, now = ec_key(), datetime.now(UTC)
    content = Certificate(
        uris=(),
        subject="upstream",
        ca=True,
        usage=("key_cert_sign",),
        not_before=now - timedelta(hours=1),
        not_after=now + timedelta(days=2),
    )
    signed = Authority.root(name="upstream", key=key).sign(content, key)
    return Authority(key, x509.load_der_x509_certificate(signed))


def write(folder: Path, signer: Authority, *above: bytes) -> None:
    """ca.pem and ca.key."""
    (folder / "ca.pem").write_text(bundles.to_pem([signer.der, *above]))
    key = signer.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "ca.key").write_bytes(key)


@asynccontextmanager
async def disk(folder: Path) -> AsyncGenerator[UpstreamAuthority]:
    write(folder, root_of_today())
    configuration = DiskConfiguration(cert_file_path=str(folder / "ca.pem"), key_file_path=str(folder / "ca.key"))
    yield await DiskAuthority.open(configuration, TD, logs.get("test"))


@asynccontextmanager
async def disk_with_intermediates(folder: Path) -> AsyncGenerator[UpstreamAuthority]:
    root = root_of_today()
    now = datetime.now(UTC)
    content = Certificate(
        uris=(),
        subject="middle",
        ca=True,
        usage=("key_cert_sign",),
        not_before=now - timedelta(minutes=1),
        not_after=now + timedelta(days=1),
    )
    middle = root.sub(content)
    write(folder, middle)
    (folder / "bundle.pem").write_text(bundles.to_pem([root.der]))
    configuration = DiskConfiguration(
        cert_file_path=str(folder / "ca.pem"),
        key_file_path=str(folder / "ca.key"),
        bundle_file_path=str(folder / "bundle.pem"),
    )
    yield await DiskAuthority.open(configuration, TD, logs.get("test"))


@asynccontextmanager
async def spire(folder: Path) -> AsyncGenerator[UpstreamAuthority]:
    async with nest(folder) as made:
        configuration = SpireConfiguration(
            server_address="127.0.0.1", server_port=made.root.port, workload_api_socket=made.workload_api.path
        )
        yield SpireAuthority(configuration, TD, logs.get("test"))


@asynccontextmanager
async def root_in_a_token(folder: Path) -> AsyncGenerator[UpstreamAuthority]:
    token = softhsm.SoftHsm.create(folder / "token")
    configuration = pkcs11.Configuration(
        module_path=softhsm.MODULE,
        token_label=token.label,
        pin_file=str(token.pin_file),
        key_label="root-2026",
        cert_file_path=str(await asyncio.to_thread(ceremony.in_token, token, folder)),
    )
    with token.installed():
        authority = await pkcs11.load(configuration, PluginContext(TD.name, str(folder), logs.get("test")))
        try:
            yield authority
        finally:
            await authority.close()


@asynccontextmanager
async def intermediate_in_a_tpm(folder: Path) -> AsyncGenerator[UpstreamAuthority]:
    with swtpm.started(folder / "tpm") as device:
        configuration = tpm.Configuration(
            tcti=device.tcti,
            key_handle=ceremony.HANDLE,
            cert_file_path=str(folder / "tpm.pem"),
            bundle_file_path=str(await asyncio.to_thread(ceremony.in_tpm, device, folder)),
        )
        authority = await tpm.load(configuration, PluginContext(TD.name, str(folder), logs.get("test")))
        try:
            yield authority
        finally:
            await authority.close()


@asynccontextmanager
async def pki_engine(folder: Path) -> AsyncGenerator[UpstreamAuthority]:
    bao = openbao.shared()
    configuration = vault.Configuration(
        vault_addr=bao.url, ca_cert_path=str(bao.ca), token_auth=TokenAuth(token=openbao.ROOT_TOKEN)
    )
    yield await vault.load(configuration, PluginContext(TD.name, str(folder), logs.get("test")))


BACKENDS: dict[str, Backend] = {
    "disk": disk,
    "disk with intermediates": disk_with_intermediates,
    "spire": spire,
    "pkcs11": root_in_a_token,
    "tpm": intermediate_in_a_tpm,
    "vault": pki_engine,
}
