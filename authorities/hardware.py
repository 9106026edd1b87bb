"""An upstream authority whose key is in a device: a root, or an intermediate, that signs a server's short-lived one.

The device signs once for each authority of the server, and the server's SVIDs are signed by a key in memory, as fast as
that is. Certificates are read from files anew for each signature, as "disk" does. A device that is away at the start
keeps nobody from going on with the authority that the journal has; it is looked for at each signature.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from authorities import certificates, issuing
from authorities.certificates import Certificates
from authorities.issuing import Limits, Request
from identity import der
from identity.bundles import JwtAuthority
from identity.spiffeid import TrustDomain
from keystores.errors import KeyStoreError
from operations import duration
from operations.errors import ConfigurationError, InvalidArgument, Refused, TemporarilyUnavailable, Unsupported
from operations.logs import Logger
from plugins.rootkey import RootKey
from plugins.upstreamauthority import LocalBundle, MintedX509Ca, PublishedJwtKeys, no_updates

_HOST = re.compile(r"\.?[a-z0-9_-]+(\.[a-z0-9_-]+)*")

OpenKey = Callable[[bytes], Awaitable[RootKey]]
"""Given the certificate's key (DER SubjectPublicKeyInfo), for devices that keep no public keys.

Raises keystores.errors, TemporarilyUnavailable for a device that is away.
"""


class Settings(Protocol):
    """What an operator says of the root's certificates, and of what it signs."""

    @property
    def cert_file_path(self) -> str: ...
    @property
    def bundle_file_path(self) -> str: ...
    @property
    def ttl(self) -> str: ...
    @property
    def path_length(self) -> int | None: ...
    @property
    def permitted_uris(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True)
class Terms:
    """What the settings mean: where the certificates are, the longest life of what is signed in seconds, its limits."""

    cert_file_path: str
    bundle_file_path: str
    ttl: int
    limits: Limits

    @classmethod
    def of(cls, settings: Settings) -> Terms:
        """Raises ConfigurationError, which names the setting."""
        for name in ("cert_file_path", "ttl"):
            if not getattr(settings, name):
                raise ConfigurationError(f"{name} must be set and not empty")
        if settings.path_length is not None and settings.path_length < 0:
            raise ConfigurationError("path_length: it must not be negative; 0 is for a server with no servers below it")
        for host in settings.permitted_uris:
            _check_host(host)
        return cls(
            settings.cert_file_path,
            settings.bundle_file_path,
            _seconds(settings.ttl),
            Limits(settings.path_length, settings.permitted_uris),
        )

    def check_trust_domain(self, trust_domain: TrustDomain) -> None:
        """Raises ConfigurationError for name constraints that no SVID of the trust domain would pass."""
        permitted = self.limits.permitted_uris
        if not permitted:
            return
        name = trust_domain.name
        if _is_address(name):
            raise ConfigurationError(
                f'permitted_uris: leave it out: trust domain "{name}" is an IP address, and name constraints are of '
                "host names"
            )
        if not any(name == host or (host.startswith(".") and name.endswith(host)) for host in permitted):
            raise ConfigurationError(
                f'permitted_uris: no SVID of trust domain "{name}" would be valid below it: add "{name}"'
            )


@dataclass(frozen=True, slots=True)
class _Files:
    """What was read, and what a new authority below it may do."""

    certificates: Certificates
    limits: Limits

    @classmethod
    def load(cls, terms: Terms, now: float) -> _Files:
        """Raises ConfigurationError, which names the file or the setting."""
        found = certificates.load(terms.cert_file_path, terms.bundle_file_path, now)
        if not terms.bundle_file_path and not issuing.is_self_signed(found.issuer):
            # Many verifiers take nothing else as the end of a chain.
            raise ConfigurationError(
                f"bundle_file_path: name the file with its root, since {terms.cert_file_path} is not self-signed"
            )
        try:
            issuing.signature_algorithm(found.issuer)
            _check_usage(found.issuer)
        except InvalidArgument as error:
            raise certificates.unusable(terms.cert_file_path, error) from error
        return cls(found, _limits(terms, found.path))

    @property
    def public_key(self) -> bytes:
        key = self.certificates.issuer.public_key()
        return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


class HardwareAuthority:
    """`name` is the plugin's; `now` gives unix seconds."""

    def __init__(
        self,
        name: str,
        terms: Terms,
        open_key: OpenKey,
        trust_domain: TrustDomain,
        log: Logger,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._name = name
        self._terms = terms
        self._open_key = open_key
        self._trust_domain = trust_domain
        self._log = log
        self._now = now
        self._opening = asyncio.Lock()
        self._files: _Files | None = None
        self._key: RootKey | None = None
        self._closed = False

    async def start(self) -> None:
        """Look at the files and the device. Raises ConfigurationError, and what opening the key raises; a device that
        is away is only warned of."""
        self._terms.check_trust_domain(self._trust_domain)
        self._files = await asyncio.to_thread(_Files.load, self._terms, self._now())
        try:
            await self._device(self._files)
        except TemporarilyUnavailable as error:
            self._log.warning(
                "The upstream CA's device is away; no authority can be signed until it is back", error=error
            )

    @property
    def name(self) -> str:
        return self._name

    async def mint_x509_ca(self, csr: bytes, preferred_ttl: int) -> MintedX509Ca:
        """The shorter of `ttl` and the lifetime asked for, but not longer than the CA's.

        Raises InvalidArgument for a request that is not one for this trust domain's authority, Refused when the CA has
        ended, TemporarilyUnavailable while the device is away, and what the key raises.
        """
        key, files = await self._current()
        ttl = min(self._terms.ttl, preferred_ttl) if preferred_ttl > 0 else self._terms.ttl
        now = int(self._now())
        found = files.certificates
        self._check_end(found.issuer, now, ttl)
        request = Request(csr, self._trust_domain, ttl, now, files.limits)
        with self._named():
            certificate = await issuing.sign_by(key, found.issuer, request)
        return MintedX509Ca((certificate, *found.above), found.roots, no_updates())

    async def publish_jwt_key(self, key: JwtAuthority) -> PublishedJwtKeys:
        raise Unsupported("publishing upstream is unsupported")

    async def subscribe_to_local_bundle(self) -> LocalBundle:
        raise Unsupported("fetching upstream trust bundle is unsupported")

    async def close(self) -> None:
        async with self._opening:
            self._closed = True
            key, self._key = self._key, None
            if key is not None:
                await key.close()

    async def _current(self) -> tuple[RootKey, _Files]:
        """The device's key and its certificates as they are now; as they were before where they cannot be used."""
        try:
            files = await asyncio.to_thread(_Files.load, self._terms, self._now())
        except ConfigurationError as error:
            files = self._before(error)
        try:
            key = await self._device(files)
        except ConfigurationError as error:
            if self._key is None:
                raise
            key, files = self._key, self._before(error)
        self._files = files
        return key, files

    def _before(self, error: ConfigurationError) -> _Files:
        if self._files is None:
            raise error
        self._log.warning("The upstream CA's files cannot be used; going on with what was read before", error=error)
        return self._files

    async def _device(self, files: _Files) -> RootKey:
        """The key of these certificates. Raises ConfigurationError for one of others, and what opening it raises."""
        async with self._opening:
            if self._closed:
                raise TemporarilyUnavailable("the upstream authority is closed")
            with self._named():
                opened = self._key or await self._open_key(files.public_key)
            try:
                self._check_key(opened, files)
            except BaseException:
                if self._key is None:
                    await opened.close()
                raise
            self._key = opened
            return opened

    @contextmanager
    def _named(self) -> Generator[None]:
        """Say of an error of the device whose it is: key managers have devices, too."""
        try:
            yield
        except KeyStoreError as error:
            raise type(error)(f'UpstreamAuthority "{self._name}": {error}') from error

    def _check_key(self, key: RootKey, files: _Files) -> None:
        if key.public_key != files.public_key:
            raise ConfigurationError(
                f"{self._terms.cert_file_path}: the certificate is of another key than {key.name} in the device"
            )

    def _check_end(self, issuer: x509.Certificate, now: int, ttl: int) -> None:
        end = issuer.not_valid_after_utc
        if end.timestamp() <= now:
            raise Refused(f"{self._terms.cert_file_path}: the upstream CA's certificate ended at {end}: replace it")
        if end.timestamp() < now + ttl:
            self._log.warning(
                "The upstream CA's certificate ends before the authority that it signs would: replace it",
                path=self._terms.cert_file_path,
                expires_at=end,
            )


def check_files(settings: Settings, now: float) -> None:
    """Raises ConfigurationError for settings and files that a start would refuse."""
    _Files.load(Terms.of(settings), now)


def _limits(terms: Terms, path: Sequence[bytes]) -> Limits:
    """The settings' limits, or, where they say nothing of path lengths, what the CAs above leave."""
    left = _path_length_left(path)
    wanted = terms.limits.path_length
    if left is None:
        return terms.limits
    if left < 0:
        raise ConfigurationError(
            f"{terms.cert_file_path}: its path length allows no authority below it, and a server's is one: "
            "use a CA with a path length of 1 or more, or without"
        )
    if wanted is not None and wanted > left:
        raise ConfigurationError(
            f"path_length: {wanted} is more than {terms.cert_file_path} allows below it, which is {left}"
        )
    return replace(terms.limits, path_length=left if wanted is None else wanted)


def _path_length_left(path: Sequence[bytes]) -> int | None:
    """How many CAs may follow one that the first of this path signs; below 0 where it may sign none."""
    left: list[int] = []
    for following, certificate in enumerate(path, start=1):
        constraints = der.certificate(certificate).extensions.get_extension_for_class(x509.BasicConstraints).value
        if constraints.path_length is not None:
            left.append(constraints.path_length - following)
    return min(left, default=None)


def _check_usage(issuer: x509.Certificate) -> None:
    try:
        usage = issuer.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return
    if not usage.key_cert_sign:
        raise InvalidArgument("the certificate's key may not sign certificates (key usage without keyCertSign)")


def _seconds(text: str) -> int:
    try:
        ttl = duration.parse(text)
    except ValueError as error:
        raise ConfigurationError(f"ttl: {error}") from error
    if ttl < timedelta(seconds=1):
        raise ConfigurationError('ttl: it must be a second or more, such as "24h"')
    return int(ttl.total_seconds())


def _check_host(host: str) -> None:
    if "://" in host:
        raise ConfigurationError(
            f"permitted_uris: {host!r} must be the trust domain's name only, without scheme or path"
        )
    if not _HOST.fullmatch(host):
        raise ConfigurationError(
            f"permitted_uris: {host!r} must be a trust domain's name, or with a dot before it all names that end so"
        )
    if _is_address(host):
        raise ConfigurationError(f"permitted_uris: {host!r} is an IP address, and name constraints are of host names")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
