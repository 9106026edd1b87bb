"""UpstreamAuthority "disk": a CA key and certificate in PEM files sign the server's authority.

The files are read anew for each signature, so that they can be replaced while the server runs. Files that cannot be
used any more do not take away what was read before: a new authority is then still signed by the old key.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from authorities import certificates, issuing
from authorities.certificates import Certificates
from authorities.issuing import Ca, PrivateKey
from identity.bundles import JwtAuthority
from identity.spiffeid import TrustDomain
from operations.errors import ConfigurationError, InvalidArgument, SpireError, Unsupported
from operations.logs import Logger
from plugins.upstreamauthority import LocalBundle, MintedX509Ca, PublishedJwtKeys, no_updates

if TYPE_CHECKING:
    from plugins.catalog import PluginContext

NAME = "disk"


class Configuration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """PEM files: the CA certificate, with its intermediates after it, its key, and, unless it is self-signed, its
    roots."""

    cert_file_path: str = ""
    key_file_path: str = ""
    bundle_file_path: str = ""

    def __post_init__(self) -> None:
        if not self.cert_file_path or not self.key_file_path:
            raise ValueError("'cert_file_path' and 'key_file_path' must be set and not empty")


@dataclass(frozen=True, slots=True)
class _Files:
    """What was read."""

    ca: Ca
    certificates: Certificates


class DiskAuthority:
    def __init__(
        self,
        configuration: Configuration,
        trust_domain: TrustDomain,
        log: Logger,
        files: _Files,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._configuration = configuration
        self._trust_domain = trust_domain
        self._log = log
        self._files = files
        self._now = now

    @classmethod
    async def open(
        cls, configuration: Configuration, trust_domain: TrustDomain, log: Logger, now: Callable[[], float] = time.time
    ) -> DiskAuthority:
        """Raises ConfigurationError for files that cannot be used."""
        files = await asyncio.to_thread(_load, configuration, now())
        return cls(configuration, trust_domain, log, files, now)

    @property
    def name(self) -> str:
        return NAME

    async def mint_x509_ca(self, csr: bytes, preferred_ttl: int) -> MintedX509Ca:
        """Raises InvalidArgument for a request that is not one for this trust domain's authority."""
        files = await self._current()
        certificate = await asyncio.to_thread(
            issuing.sign, files.ca, csr, self._trust_domain, preferred_ttl, int(self._now())
        )
        return MintedX509Ca((certificate, *files.certificates.above), files.certificates.roots, no_updates())

    async def publish_jwt_key(self, key: JwtAuthority) -> PublishedJwtKeys:
        raise Unsupported("publishing upstream is unsupported")

    async def subscribe_to_local_bundle(self) -> LocalBundle:
        raise Unsupported("fetching upstream trust bundle is unsupported")

    async def close(self) -> None:
        """There is nothing to give back."""

    async def _current(self) -> _Files:
        try:
            self._files = await asyncio.to_thread(_load, self._configuration, self._now())
        except SpireError as error:
            self._log.warning("The upstream CA's files cannot be used; going on with what was read before", error=error)
        return self._files


def _load(configuration: Configuration, now: float) -> _Files:
    key = _private_key(configuration.key_file_path)
    loaded = certificates.load(configuration.cert_file_path, configuration.bundle_file_path, now)
    try:
        return _Files(Ca.of(loaded.issuer, key), loaded)
    except InvalidArgument as error:
        raise certificates.unusable(configuration.cert_file_path, error) from error


def _private_key(path: str) -> PrivateKey:
    try:
        key = serialization.load_pem_private_key(certificates.read(path), None)
    except OSError as error:
        raise ConfigurationError(f"{path}: unable to load upstream CA key: {certificates.reason(error)}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(
            f"{path}: unable to load upstream CA key: it is no unencrypted private key in PEM"
        ) from error
    if not isinstance(key, PrivateKey):
        raise ConfigurationError(f"{path}: unable to load upstream CA key: use an RSA or ECDSA key")
    return key


async def load(configuration: Configuration, context: PluginContext) -> DiskAuthority:
    return await DiskAuthority.open(configuration, TrustDomain(context.trust_domain), context.log)
