"""A serving certificate of two PEM files, looked at again and again: whoever renews them tells nobody."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from operations.errors import ConfigurationError, InvalidArgument, SpireError, TemporarilyUnavailable
from operations.logs import Logger
from transport.tls import InProcessIdentity, TlsContext, web_context

LARGEST: Final = 1 << 20
"""Bytes of a file that is read."""

RETRY: Final = 5.0
"""Seconds until a pair that cannot be used is looked at again: it may have been caught half-written."""

SHORTEST: Final = 0.1
"""Seconds between two looks, however short the interval."""


@dataclass(frozen=True, slots=True)
class Pair:
    """What the files hold, and whether anybody on the machine may read the key."""

    certificate: bytes
    key: bytes = field(repr=False)
    open_to_all: bool = field(compare=False)


class FilesCertificate:
    """A ServingCertificate. The pair is read as a whole; one that cannot be used changes nothing.

    What the files say is compared, and not when they were changed: links are swapped, and times set back.
    """

    def __init__(
        self, certificate: str, key: str, interval: timedelta, log: Logger, *, require_pq_kem: bool = False
    ) -> None:
        self._certificate_path = certificate
        self._key_path = key
        self._interval = max(SHORTEST, interval.total_seconds())
        self._log = log.bind(cert_file_path=certificate)
        self._require_pq_kem = require_pq_kem
        self._pair: Pair | None = None
        self._context: TlsContext | None = None
        self._ends_at = 0.0
        self._told = ""
        self._told_end = False

    async def start(self) -> None:
        """Raises ConfigurationError for files that cannot be read or used."""
        await self._look()
        self._tell_end()

    def tls(self) -> TlsContext:
        if self._context is None:
            raise TemporarilyUnavailable("there is no certificate to show yet")
        return self._context

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._wait())
            try:
                await self._look()
                self._told = ""
            except SpireError as error:
                if str(error) != self._told:
                    self._told = str(error)
                    self._log.error("The certificate files cannot be used; what was shown stays", error=error)
            self._tell_end()

    def _wait(self) -> float:
        until_end = max(0.0, self._ends_at - time.time()) + SHORTEST
        wait = min(self._interval, RETRY) if self._told else self._interval
        return wait if self._told_end else min(wait, until_end)

    async def _look(self) -> None:
        pair = await asyncio.to_thread(read, self._certificate_path, self._key_path)
        if pair == self._pair:
            return
        identity = identity_of(pair, self._certificate_path, self._key_path)
        self._context = web_context(identity, require_pq_kem=self._require_pq_kem)
        self._ends_at = x509.load_der_x509_certificate(identity.chain[0]).not_valid_after_utc.timestamp()
        self._told_end = False
        if pair.open_to_all:
            self._log.warning("Anybody on this machine may read the key: take that right away", path=self._key_path)
        if self._pair is not None:
            self._log.info("Certificate files changed; the new certificate is shown", expiration=self._end())
        self._pair = pair

    def _tell_end(self) -> None:
        if not self._told_end and time.time() >= self._ends_at:
            self._told_end = True
            self._log.error("The certificate has expired and is shown all the same: renew it", expiration=self._end())

    def _end(self) -> datetime:
        return datetime.fromtimestamp(self._ends_at, UTC)


def read(certificate: str, key: str) -> Pair:
    """Blocking. Raises ConfigurationError with the path."""
    content, _ = _content(certificate)
    secret, mode = _content(key)
    return Pair(content, secret, bool(mode & (stat.S_IROTH | stat.S_IWOTH)))


def identity_of(pair: Pair, certificate: str, key: str) -> InProcessIdentity:
    """The pair, parsed and matched; the paths are for messages. Raises ConfigurationError."""
    try:
        chain = x509.load_pem_x509_certificates(pair.certificate)
    except ValueError as error:
        raise ConfigurationError(f"{certificate} has no PEM certificates that can be read") from error
    try:
        private_key = load_pem_private_key(pair.key, password=None)
    except TypeError as error:
        raise ConfigurationError(f"the key in {key} has a passphrase: write it without one") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(f"{key} has no PEM private key that can be read") from error
    try:
        matches = chain[0].public_key() == private_key.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(f"the certificate in {certificate} has a key of an unknown kind") from error
    if not matches:
        raise ConfigurationError(f"the key in {key} is not that of the first certificate in {certificate}")
    identity = InProcessIdentity(
        tuple(each.public_bytes(Encoding.DER) for each in chain),
        private_key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
    )
    try:
        web_context(identity)
    except InvalidArgument as error:
        raise ConfigurationError(f"{certificate} and {key} cannot be used: {error}") from error
    return identity


def _content(path: str) -> tuple[bytes, int]:
    """The bytes, and the mode."""
    try:
        # Without waiting for a writer, were it a pipe.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise ConfigurationError(f"{path} is no file")
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    if len(data) > LARGEST:
        raise ConfigurationError(f"{path} is longer than 1 MiB: it is no certificate or key")
    return data, mode
