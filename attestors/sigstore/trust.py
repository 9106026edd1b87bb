"""What is trusted: Fulcio's certificates, Rekor's keys and CT logs' keys, and when each of them was in use."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_pem_public_key,
)

from operations.errors import InvalidArgument

LogKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey


@dataclass(frozen=True, slots=True)
class Period:
    """From a time to a time, both aware and both included; None is without end."""

    begin: datetime | None = None
    end: datetime | None = None

    def covers(self, time: datetime) -> bool:
        return (self.begin is None or self.begin <= time) and (self.end is None or time <= self.end)


ALWAYS = Period()


@dataclass(frozen=True, slots=True)
class Log:
    """A log is known by its id: the SHA-256 of its key's DER SubjectPublicKeyInfo, in hex (RFC 6962, 3.2)."""

    key: LogKey
    period: Period = ALWAYS


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA's certificates: a root and those below it, in any order."""

    certificates: tuple[x509.Certificate, ...]
    period: Period = ALWAYS


@dataclass(frozen=True, slots=True)
class TrustRoot:
    """Logs are by their ids."""

    fulcio: tuple[Authority, ...]
    rekor: Mapping[str, Log]
    ct: Mapping[str, Log]

    def authorities(self, at: datetime) -> tuple[list[x509.Certificate], list[x509.Certificate]]:
        """Roots, which are those that name themselves, and intermediates of the CAs that were in use at a time."""
        found = [each for authority in self.fulcio if authority.period.covers(at) for each in authority.certificates]
        roots = [each for each in found if each.subject == each.issuer]
        return roots, [each for each in found if each.subject != each.issuer]

    def rekor_keys(self, at: datetime) -> Mapping[str, LogKey]:
        return {name: log.key for name, log in self.rekor.items() if log.period.covers(at)}

    def ct_keys(self, at: datetime) -> Mapping[str, LogKey]:
        return {name: log.key for name, log in self.ct.items() if log.period.covers(at)}


def log_id(key: LogKey) -> str:
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def read_key(data: bytes) -> LogKey:
    """A public key in PEM or in DER. Raises InvalidArgument."""
    try:
        key = load_pem_public_key(data) if b"-----BEGIN" in data else load_der_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidArgument("it is no public key in PEM or DER") from error
    if not isinstance(key, LogKey):
        raise InvalidArgument("it is no public key of ECDSA, RSA or Ed25519")
    return key


def read_certificates(data: bytes) -> tuple[x509.Certificate, ...]:
    """Certificates in PEM, at least one. Raises InvalidArgument."""
    try:
        return tuple(x509.load_pem_x509_certificates(data))
    except ValueError as error:
        raise InvalidArgument("it has no certificate in PEM") from error


def logs_of(keys: Sequence[LogKey], period: Period = ALWAYS) -> dict[str, Log]:
    return {log_id(key): Log(key, period) for key in keys}


def parse_time(text: str | None) -> datetime | None:
    """A time of RFC 3339. Raises InvalidArgument."""
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidArgument(f"{text[:40]!r} is no time") from error
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
