"""Upstream authorities of every kind, each ready to sign."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from authorities.disk import Configuration as DiskConfiguration
from authorities.disk import DiskAuthority
from authorities.spire import Configuration as SpireConfiguration
from authorities.spire import SpireAuthority
from identity import bundles
from identity.spiffeid import TrustDomain
from operations import logs
from plugins.upstreamauthority import UpstreamAuthority
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


BACKENDS: dict[str, Backend] = {"disk": disk, "disk with intermediates": disk_with_intermediates, "spire": spire}
